"""`tracin influence` and `tracin score`, whole: against full gradients, and byte for byte against
themselves.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.conftest import Tiny, write_records
from tests.synthetic import exact_scores
from transforms.core.shapes import Span
from transforms.influence.rows import read_rows
from transforms.scoring.influence import Scoring
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest

K = 4
# Submits nothing.
DRY_RUN = (
    "--runner=DataflowRunner",
    "--dry_run=True",
    "--project=some-project",
    "--region=us-central1",
    "--temp_location=gs://bucket/tmp",
)


@pytest.fixture(scope="module")
def data(tiny: Tiny, tmp_path_factory) -> pathlib.Path:
    """30 training and 10 test examples; the training examples also as one file and as five."""
    directory = tmp_path_factory.mktemp("data")
    payloads = tiny.payloads()
    write_records(directory / "test-0", payloads[30:])
    write_records(directory / "train-0", payloads[:17])
    write_records(directory / "train-1", payloads[17:30], "GZIP")
    write_records(directory / "whole-0", payloads[:30])
    for i in range(5):
        write_records(directory / f"fifth-{i}", payloads[6 * i : 6 * i + 6])
    return directory


def flags(
    data: pathlib.Path, tiny: Tiny, output: pathlib.Path, train: str = "train", **more: object
) -> list[str]:
    wanted = {
        "train_examples": data / f"{train}-*",
        "test_examples": data / "test-*",
        "checkpoints": tiny.glob,
        "output": output,
        "id_key": "id",
        "k": K,
        **more,
    }
    return [f"--{name}={value}" for name, value in wanted.items()]


@pytest.fixture(scope="module")
def result(data, tiny, tmp_path_factory) -> pathlib.Path:
    from pipeline import cli

    output = tmp_path_factory.mktemp("result") / "out"
    assert cli.main(["influence", *flags(data, tiny, output)]) == 0
    return output


def data_files(output: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.iterdir()) if path.is_file()}


def full_gradient_scores(tiny: Tiny, tests: slice, trains: slice, bias: bool = True) -> np.ndarray:
    """Influence by the definition: a GradientTape per example on the last layer's own kernel (and
    bias), nothing factored.
    """
    import keras
    import tensorflow as tf

    total = np.zeros(())
    for path, rate in zip(tiny.paths, (0.5, 0.125, 0.25), strict=True):
        model = keras.models.load_model(path)
        variables = model.layers[-1].trainable_variables[: 1 + bias]
        gradients = []
        for image, label in zip(tiny.images, tiny.labels, strict=True):
            with tf.GradientTape() as tape:
                # In float64, where a confident example's p − 1 does not cancel.
                logits = tf.cast(model(image[None], training=False), tf.float64)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits([label], logits)
            gradients.append(
                np.concatenate(
                    [np.asarray(g, np.float64).ravel() for g in tape.gradient(loss, variables)]
                )
            )
        flat = np.array(gradients)
        total = total + rate * flat[tests] @ flat[trains].T
    return total


def test_scores_and_ranks_are_those_of_full_gradients(result, tiny):
    scores = full_gradient_scores(tiny, slice(30, 40), slice(0, 30))
    rows = read_rows(str(result))
    assert [row["test_id"] for row in rows] == [f"ex-{i}" for i in range(30, 40)]
    own = np.diag(full_gradient_scores(tiny, slice(30, 40), slice(30, 40)))
    for i, row in enumerate(rows):
        assert row["self_influence"] == pytest.approx(own[i], rel=1e-4)
        assert row["test_label"] == tiny.labels[30 + i]
        for name, sign in (("proponents", 1), ("opponents", -1)):
            best = [j for j in np.argsort(-sign * scores[i]) if sign * scores[i, j] > 1e-9][:K]
            assert [one["train_id"] for one in row[name]] == [f"ex-{j:02d}" for j in best]
            assert [one["score"] for one in row[name]] == pytest.approx(
                [scores[i, j] for j in best], rel=1e-4
            )
            assert [one["train_label"] for one in row[name]] == [tiny.labels[j] for j in best]


@pytest.mark.parametrize(
    ("train", "more"),
    [
        ("train", {"train_rows_per_tile": 7, "test_rows_per_tile": 3}),
        ("train", {"train_rows_per_tile": 1, "memory_gb": 0.5}),
        ("train", {"batch_size": 3}),
        ("whole", {}),
        ("fifth", {"test_rows_per_tile": 4}),
    ],
)
def test_bytes_do_not_depend_on_tiles_memory_batches_or_shards(
    result, data, tiny, tracin, tmp_path, train, more
):
    outcome = tracin("influence", *flags(data, tiny, tmp_path / "out", train, **more))
    assert outcome.status == 0, outcome.err
    found, expected = data_files(tmp_path / "out"), data_files(result)
    assert sorted(found) == [
        "influence-00000.jsonl",
        "influence-00000.parquet",
        "manifest.json",
        "report.html",
    ]
    for name in ("influence-00000.jsonl", "influence-00000.parquet", "report.html"):
        assert found[name] == expected[name], name


def test_the_two_halves_give_the_same_bytes(result, data, tiny, tracin, tmp_path):
    common = [f"--checkpoints={tiny.glob}", "--id_key=id"]
    assert (
        tracin(
            "features", f"--examples={data}/train-*", f"--output={tmp_path}/train", *common
        ).status
        == 0
    )
    assert (
        tracin("features", f"--examples={data}/test-*", f"--output={tmp_path}/test", *common).status
        == 0
    )
    outcome = tracin(
        "score",
        f"--train_features={tmp_path}/train",
        f"--test_features={tmp_path}/test",
        f"--output={tmp_path}/out",
        f"--k={K}",
    )
    assert outcome.status == 0, outcome.err
    assert "influence: 10 rows" in outcome.out
    assert data_files(tmp_path / "out") == data_files(result)


def test_other_learning_rates_and_normalisations_are_other_scores_of_the_same_features(
    result, tracin, tmp_path
):
    sets = [
        f"--train_features={result}/train_features",
        f"--test_features={result}/test_features",
        "--k=30",
    ]
    rows = {}
    for name, more in {
        "own": [],
        "doubled": ["--learning_rates=1.0,0.25,0.5"],
        "cosine": ["--normalize=cosine"],
    }.items():
        outcome = tracin("score", *sets, f"--output={tmp_path}/{name}", *more)
        assert outcome.status == 0, outcome.err
        rows[name] = read_rows(str(tmp_path / name))
    for own, doubled, cosine in zip(rows["own"], rows["doubled"], rows["cosine"], strict=True):
        # Doubling every rate doubles every score exactly.
        assert [2 * one["score"] for one in own["proponents"]] == [
            one["score"] for one in doubled["proponents"]
        ]
        assert all(0 < one["score"] <= 1 + 1e-12 for one in cosine["proponents"])
        assert {one["train_id"] for one in own["proponents"]} == {
            one["train_id"] for one in cosine["proponents"]
        }


def test_sets_of_different_dtypes_are_scored_as_what_they_hold(
    result, data, tiny, tracin, tmp_path
):
    short = tmp_path / "short"
    words = [f"--checkpoints={tiny.glob}", "--id_key=id", "--runner=FnApiRunner"]
    assert (
        tracin(
            "features",
            f"--examples={data}/train*",
            f"--output={short}",
            "--feature_dtype=bfloat16",
            *words,
        ).status
        == 0
    )
    test = result / "test_features"
    assert (
        tracin(
            "score",
            f"--train_features={short}",
            f"--test_features={test}",
            f"--output={tmp_path / 'out'}",
            "--k=5",
        ).status
        == 0
    )
    sets = [
        FeatureSet(str(one), manifests.read(str(one), FeatureManifest, "features"))
        for one in (test, short)
    ]
    tests, trains = (
        one.read([Span(i, 0, file.count) for i, file in enumerate(one.manifest.files)])
        for one in sets
    )
    exact = exact_scores(tests, trains, Scoring(sets[1].manifest.learning_rates, 5))
    places = {train_id.decode(): j for j, train_id in enumerate(trains.example_ids)}
    rows = {
        row["test_id"]: row
        for path in sorted((tmp_path / "out").glob("*.jsonl"))
        for row in map(json.loads, path.open())
    }
    assert len(rows) == len(tests)
    for i, test_id in enumerate(tests.example_ids):
        found = rows[test_id.decode()]["proponents"]
        np.testing.assert_allclose(
            [one["score"] for one in found], np.sort(exact[i])[::-1][: len(found)], rtol=1e-9
        )
        np.testing.assert_allclose(
            [one["score"] for one in found],
            [exact[i, places[one["train_id"]]] for one in found],
            rtol=1e-9,
        )


def test_k_beyond_the_training_set_gives_all_that_have_the_sign(result, tracin, tmp_path):
    outcome = tracin(
        "score",
        f"--train_features={result}/train_features",
        f"--test_features={result}/test_features",
        f"--output={tmp_path}/out",
        "--k=5000",
    )
    assert outcome.status == 0, outcome.err
    for row in read_rows(str(tmp_path / "out")):
        ids = [one["train_id"] for one in row["proponents"] + row["opponents"]]
        assert sorted(ids) == [f"ex-{j:02d}" for j in range(30)]


def test_a_complete_result_is_no_work_and_other_settings_are_refused(result, data, tiny, tracin):
    before = {path: path.stat().st_mtime_ns for path in result.rglob("*")}
    again = tracin("influence", *flags(data, tiny, result))
    assert again.status == 0
    assert "complete with the same settings: nothing to do" in again.out
    other = tracin("influence", *flags(data, tiny, result, k=5))
    assert other.status == 2
    assert other.err.count("\n") == 1
    assert (
        "complete with other settings (k was 4, is 5): choose another directory, or pass "
        "--overwrite" in other.err
    )
    labels = tracin("influence", *flags(data, tiny, result, test_labels="predicted"))
    assert labels.status == 2
    assert 'labels was "given", is "predicted"' in labels.err
    assert {path: path.stat().st_mtime_ns for path in result.rglob("*")} == before


def test_a_run_that_died_after_extraction_goes_on_from_its_features(
    result, data, tiny, tracin, tmp_path
):
    shutil.copytree(result, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    features = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_features/*")}
    outcome = tracin("influence", *flags(data, tiny, tmp_path / "out"))
    assert outcome.status == 0, outcome.err
    assert "train_features: already complete, used as they are" in outcome.out
    assert data_files(tmp_path / "out") == data_files(result)
    assert {path: path.stat().st_mtime_ns for path in features} == features


def test_overwrite_replaces_a_result_and_leaves_nothing_of_the_old_one(
    result, data, tiny, tracin, tmp_path
):
    shutil.copytree(result, tmp_path / "out")
    old = {path.name for path in (tmp_path / "out").glob("*_features/features-*")}
    outcome = tracin("influence", *flags(data, tiny, tmp_path / "out", k=2), "--overwrite")
    assert outcome.status == 0, outcome.err
    assert all(len(row["proponents"]) <= 2 for row in read_rows(str(tmp_path / "out")))
    left = {path.name for path in (tmp_path / "out").glob("*_features/features-*")}
    assert len(left) == len(old) and not left & old


def test_overwrite_leaves_the_old_result_until_there_is_a_new_one(
    result, data, tiny, tracin, tmp_path
):
    shutil.copytree(result, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert (
        tracin(
            "influence", *flags(data, tiny, tmp_path / "out", k=2), "--overwrite", *DRY_RUN
        ).status
        == 0
    )
    assert {
        path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    } == before


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_an_input_is_never_taken_for_the_output(result, tracin, tmp_path, more):
    shutil.copytree(result, tmp_path / "in")
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    sets = [
        f"--train_features={tmp_path}/in/train_features",
        f"--test_features={tmp_path}/in/test_features",
    ]
    outcome = tracin("score", *sets, f"--output={tmp_path}/in/train_features", *more)
    assert outcome.status == 2
    assert "holds features, and influence would go there: choose another directory" in outcome.err
    assert {
        path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()
    } == before


def test_an_empty_test_set_is_a_result_without_rows(data, tiny, tracin, tmp_path):
    write_records(tmp_path / "data" / "test-0", [])
    wanted = flags(data, tiny, tmp_path / "out", test_examples=tmp_path / "data" / "test-*")
    outcome = tracin("influence", *wanted)
    assert outcome.status == 0, outcome.err
    assert "influence: 0 rows" in outcome.out
    assert read_rows(str(tmp_path / "out")) == []


def test_an_empty_training_set_fails_in_one_line(data, tiny, tracin, tmp_path):
    write_records(tmp_path / "data" / "train-0", [])
    outcome = tracin(
        "influence",
        *flags(data, tiny, tmp_path / "out", train_examples=tmp_path / "data" / "train-*"),
    )
    assert outcome.status == 1
    warning, told = outcome.err.splitlines()
    assert (
        warning == f"warning: --train_examples: {tmp_path}/data/train-0 is empty, "
        "as a writer that died leaves it"
    )
    directory = str(tmp_path / "out" / "train_features")
    assert f"{directory!r} holds no example: there is nothing to score against" in told
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_too_many_rejects_in_one_set_end_the_whole_run_without_a_manifest(
    data, tiny, tracin, tmp_path
):
    write_records(tmp_path / "data" / "train-0", [*tiny.payloads()[:5], b"not an example"])
    outcome = tracin(
        "influence",
        *flags(data, tiny, tmp_path / "out", train_examples=tmp_path / "data" / "train-*"),
    )
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "1 of 6 examples were rejected (not-an-example 1)" in outcome.err
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "train_features" / "manifest.json").exists()


def test_features_of_another_model_are_refused(result, data, tiny, tiny_softmax, tracin, tmp_path):
    made = tracin(
        "features",
        f"--examples={data}/test-*",
        f"--output={tmp_path}/test",
        f"--checkpoints={tiny_softmax.glob}",
        "--id_key=id",
    )
    assert made.status == 0, made.err
    outcome = tracin(
        "score",
        f"--train_features={result}/train_features",
        f"--test_features={tmp_path}/test",
        f"--output={tmp_path}/out",
    )
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    assert "are features of different models (different checkpoints" in outcome.err
    assert not (tmp_path / "out").exists()


def test_without_the_bias_the_scores_are_those_of_the_kernel_alone(data, tiny, tracin, tmp_path):
    outcome = tracin("influence", *flags(data, tiny, tmp_path / "out", include_bias="false", k=30))
    assert outcome.status == 0, outcome.err
    scores = full_gradient_scores(tiny, slice(30, 40), slice(0, 30), bias=False)
    for i, row in enumerate(read_rows(str(tmp_path / "out"))):
        found = {one["train_id"]: one["score"] for one in row["proponents"] + row["opponents"]}
        assert found == pytest.approx(
            {f"ex-{j:02d}": scores[i, j] for j in range(30) if f"ex-{j:02d}" in found},
            rel=1e-4,
            abs=1e-12,
        )
        assert len(found) > 20


def test_predicted_labels_explain_what_the_model_says(result, data, tiny, tracin, tmp_path):
    outcome = tracin("influence", *flags(data, tiny, tmp_path / "out", test_labels="predicted"))
    assert outcome.status == 0, outcome.err
    given = read_rows(str(result))
    rows = read_rows(str(tmp_path / "out"))
    assert all(
        row["test_label"] == row["test_prediction"] == other["test_prediction"]
        for row, other in zip(rows, given, strict=True)
    )
    same = [row == other for row, other in zip(rows, given, strict=True)]
    agree = [other["test_label"] == other["test_prediction"] for other in given]
    assert same == agree
    assert not all(agree)


def test_a_graph_that_is_only_built_runs_nothing_here(data, tiny, tracin, tmp_path):
    # As a Flex Template's launcher does: whatever a correct result needs is in the graph, not after
    # run().
    outcome = tracin("influence", *flags(data, tiny, tmp_path / "out"), *DRY_RUN)
    assert outcome.status == 0, outcome.err
    assert "the graph is built; nothing has run" in outcome.out
    assert not list((tmp_path / "out").rglob("*"))


def test_the_result_manifest_lists_its_files_and_settings(result):
    manifest = json.loads((result / "manifest.json").read_text())
    assert manifest["kind"] == "influence"
    assert manifest["counts"] == {"rows": 10}
    assert [file["name"] for file in manifest["files"]] == [
        "influence-00000.jsonl",
        "influence-00000.parquet",
        "report.html",
    ]
    assert all(file["size"] == (result / file["name"]).stat().st_size for file in manifest["files"])
    assert [file["count"] for file in manifest["files"]] == [10, 10, 1]
    assert manifest["settings"]["learning_rates"] == [0.5, 0.125, 0.25]


def test_the_report_shows_the_worst_predicted_with_their_candidates(
    data, tiny, result, tracin, tmp_path
):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class <{k}>\n" for k in range(3)))
    sets = [f"--{name}_features={result / f'{name}_features'}" for name in ("train", "test")]
    status, out, err = tracin(
        "score", *sets, f"--k={K}", f"--class_names={names}", f"--output={tmp_path / 'out'}"
    )
    assert status == 0, err
    assert f"open {tmp_path / 'out' / 'report.html'} in a browser" in out
    before, after = data_files(result), data_files(tmp_path / "out")
    for name in before:
        if name.startswith("influence-"):
            assert after[name] == before[name]
    page = after["report.html"].decode()
    test = FeatureSet(
        str(result / "test_features"),
        manifests.read(str(result / "test_features"), FeatureManifest, "test_features"),
    )
    features = test.read([Span(i, 0, file.count) for i, file in enumerate(test.manifest.files)])
    order = np.lexsort((features.example_ids, features.label_probabilities[:, -1]))
    places = [page.index(f'data-id="{features.example_ids[i].decode()}"') for i in order]
    assert places == sorted(places) and len(places) == 10 and "class &lt;1&gt;" in page
    rows = read_rows(str(result))
    shown = sum(1 + len(row["proponents"]) + len(row["opponents"]) for row in rows)
    assert page.count('src="data:image/png;base64,') == page.count("<img ") == shown
    for row in rows:
        for one in (*row["proponents"], *row["opponents"]):
            assert f'alt="the picture of {one["train_id"]}"' in page
    names.write_text("one\n")
    status, _, err = tracin(
        "score", *sets, f"--class_names={names}", f"--output={tmp_path / 'other'}"
    )
    assert status == 2 and "has 1 lines" in err


def test_a_report_without_pictures_says_why(data, tiny, result, tracin, tmp_path):
    for name in ("train", "test"):
        shutil.copytree(result / f"{name}_features", tmp_path / name)
    # As an earlier version left it.
    content = json.loads((tmp_path / "test" / "manifest.json").read_text())
    content.pop("inputs")
    (tmp_path / "test" / "manifest.json").write_text(json.dumps(content))
    words = [
        f"--train_features={tmp_path / 'train'}",
        f"--test_features={tmp_path / 'test'}",
        f"--output={tmp_path / 'out'}",
        f"--k={K}",
    ]
    status, _, err = tracin("score", *words)
    assert status == 0, err
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        "Test set: There are no pictures: the features were extracted by an earlier version" in page
    )
    assert "the picture of" in page and "Training set" not in page
    content["inputs"] = [{"key": "x", "shape": [6], "dtype": "float32"}]
    (tmp_path / "test" / "manifest.json").write_text(json.dumps(content))
    status, _, err = tracin("score", *words, "--overwrite")
    assert status == 0, err
    assert (
        "Test set: There are no pictures: the model&#39;s inputs have the shapes (6,)."
        in (tmp_path / "out" / "report.html").read_text()
    )
