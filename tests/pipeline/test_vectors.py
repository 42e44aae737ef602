"""`tracin export`, `tracin index` and `tracin search`: vectors in each format, indexes, and rows
that are those of `tracin score`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable

import faiss
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from tests.conftest import Outcome
from tests.synthetic import draw, exact_scores, write_set
from transforms.influence.rows import read_rows
from transforms.runtime import counters
from transforms.scoring.influence import Scoring
from transforms.scoring.tiles import spans
from transforms.storage import feature_manifest, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.vectors import faiss_index, files, index
from transforms.vectors.files import FORMATS, read_projection

Run = Callable[..., Outcome]
RATES = (0.1, 0.02)
K = 5


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_set(tmp_path_factory.mktemp("train"), [150, 0, 130], 1, "train-")


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_set(tmp_path_factory.mktemp("test"), [30, 11], 2, "test-")


def features_of(directory: pathlib.Path):
    found = FeatureSet(
        str(directory), manifests.read(str(directory), feature_manifest.FeatureManifest, "features")
    )
    return found.read(spans(found.counts, 0, sum(found.counts)))


def vectors_in(directory: pathlib.Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(directory.glob("vectors-*.npy"))])


def done(outcome: Outcome) -> Outcome:
    assert outcome.status == 0, outcome.err
    return outcome


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files of vectors, and several indexes."""
    monkeypatch.setattr(files, "_FILE_ROWS", 100)
    monkeypatch.setattr(index, "_MOST_BYTES", 100 * (4 * 36 + index._BESIDE_BYTES))


@pytest.mark.parametrize("normalize", ["none", "cosine"])
def test_exported_vectors_multiply_to_the_influence(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path, normalize: str
):
    done(
        tracin(
            "export",
            f"--features={train}",
            f"--output={tmp_path}/v",
            "--projection=exact",
            f"--normalize={normalize}",
        )
    )
    done(
        tracin(
            "export",
            f"--features={test_set}",
            f"--output={tmp_path}/t",
            f"--projection_of={tmp_path}/v",
        )
    )
    expected = exact_scores(features_of(test_set), features_of(train), Scoring(RATES, 1, normalize))
    found = vectors_in(tmp_path / "t").astype(np.float64) @ vectors_in(tmp_path / "v").T
    own = [
        np.diag(exact_scores(one, one, Scoring(RATES, 1, normalize)))
        for one in map(features_of, (test_set, train))
    ]
    assert (np.abs(found - expected) <= 1e-6 * np.sqrt(np.outer(*own))).all()
    ids = np.concatenate([np.load(path) for path in sorted((tmp_path / "v").glob("ids-*.npy"))])
    assert ids.tolist() == [f"train-{i:05d}" for i in range(280)]


def test_every_format_holds_the_same_vectors(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path
):
    import tensorflow as tf

    formats = ",".join(FORMATS)
    outcome = done(
        tracin(
            "export",
            f"--features={train}",
            f"--output={tmp_path}/v",
            "--dimensions=12",
            f"--formats={formats}",
        )
    )
    assert "280 vectors of 12 numbers (auto:" in outcome.out
    directory = tmp_path / "v"
    vectors, expected = vectors_in(directory), features_of(train)
    assert vectors.shape == (280, 12) and vectors.dtype == np.float32
    for suffix in ("npy", "parquet", "tfrecord", "faiss", "json"):
        assert len(list(directory.glob(f"vectors-*.{suffix}"))) == 3
    table = pq.read_table(sorted(directory.glob("vectors-*.parquet")))
    assert table["example_id"].to_pylist() == [
        one.decode() for one in expected.example_ids.tolist()
    ]
    assert table["label"].to_pylist() == expected.labels[:, 0].tolist()
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors)
    shape = {
        "example_id": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "vector": tf.io.FixedLenFeature([12], tf.float32),
    }
    read = [
        tf.io.parse_single_example(record, shape)
        for record in tf.data.TFRecordDataset(
            [str(path) for path in sorted(directory.glob("vectors-*.tfrecord"))]
        )
    ]
    assert np.array_equal([one["vector"].numpy() for one in read], vectors)
    assert [one["example_id"].numpy() for one in read] == expected.example_ids.tolist()
    assert [int(one["label"]) for one in read] == expected.labels[:, 0].tolist()
    lines = [
        orjson.loads(line)
        for path in sorted(directory.glob("vectors-*.json"))
        for line in path.read_bytes().splitlines()
    ]
    assert np.array_equal(np.array([line["embedding"] for line in lines], np.float32), vectors)
    assert lines[3]["id"] == "train-00003"
    assert lines[3]["restricts"] == [{"namespace": "label", "allow": [str(expected.labels[3, 0])]}]
    start = 0
    for path in sorted(directory.glob("vectors-*.faiss")):
        index = faiss.read_index(str(path))
        assert np.array_equal(index.search(vectors[start : start + 5], 1)[1].shape, (5, 1))
        ids = faiss.vector_to_array(index.id_map)
        assert ids.tolist() == list(range(start, start + index.ntotal))
        assert np.array_equal(index.reconstruct(start + 7), vectors[start + 7])
        start += index.ntotal
    assert start == 280


@pytest.mark.parametrize(("task", "outputs"), [("multilabel", 3), ("regression", 3)])
def test_labels_of_other_tasks(tracin: Run, tmp_path: pathlib.Path, task: str, outputs: int):
    labels = (
        np.array([[0, 2], [1, -1], [2, -1]])
        if task == "multilabel"
        else np.array([[0.5, 1, 2], [1, 1, 1], [0, 0, -1]])
    )
    directory = write_set(tmp_path / "set", [3], 3, "x-", labels=labels, task=task)
    done(
        tracin(
            "export",
            f"--features={directory}",
            f"--output={tmp_path}/v",
            "--projection=exact",
            "--formats=parquet,vertex,tfrecord",
        )
    )
    expected = [[0, 2], [1], [2]] if task == "multilabel" else labels.tolist()
    assert pq.read_table(tmp_path / "v" / "vectors-00000.parquet")["label"].to_pylist() == expected
    line = orjson.loads((tmp_path / "v" / "vectors-00000.json").read_bytes().splitlines()[0])
    if task == "multilabel":
        assert line["restricts"] == [{"namespace": "label", "allow": ["0", "2"]}]
    else:
        assert line["numeric_restricts"] == [
            {"namespace": "label", "value_double": value} for value in (0.5, 1, 2)
        ]


def test_equal_seeds_give_equal_files(tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path):
    for method in ("auto", "principal", "sketch", "random"):
        sums = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            output = tmp_path / method / name
            done(
                tracin(
                    "export",
                    f"--features={train}",
                    f"--output={output}",
                    f"--projection={method}",
                    "--dimensions=10",
                    f"--seed={seed}",
                )
            )
            sums.append(b"".join(path.read_bytes() for path in sorted(output.glob("*.np[yz]"))))
        assert sums[0] == sums[1] != sums[2], method


def test_worker_processes_make_the_same_projection(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path
):
    several = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    for name, flags in (("one", ()), ("two", several)):
        done(
            tracin(
                "export",
                f"--features={train}",
                f"--output={tmp_path}/{name}",
                "--dimensions=10",
                *flags,
            )
        )
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.np[yz]")}
        for name in ("one", "two")
    )
    # This process was told to cut files small, workers were not.
    assert one["projection.npz"] == two["projection.npz"]
    assert np.array_equal(vectors_in(tmp_path / "one"), vectors_in(tmp_path / "two"))


@pytest.mark.parametrize("normalize", ["none", "cosine", "relatif"])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_search_that_looks_everywhere_gives_the_rows_of_score(
    tracin: Run,
    tmp_path: pathlib.Path,
    train: pathlib.Path,
    test_set: pathlib.Path,
    normalize: str,
    kind: str,
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(
        tracin(
            "index",
            sets[0],
            f"--output={tmp_path}/ix",
            "--projection=exact",
            f"--kind={kind}",
            f"--normalize={normalize}",
        )
    )
    assert len(list((tmp_path / "ix").glob("index-*.faiss"))) == 3
    effort = {"flat": [], "ivf": ["--nprobe=1000"], "hnsw": ["--ef_search=1000"]}
    everywhere = ("--oversampling=60", *effort[kind], "--recall_sample=7")
    for flag in {"--nprobe=4", "--ef_search=9"} - {
        one.split("=")[0] + ("=4" if "nprobe" in one else "=9") for one in effort[kind]
    }:
        other = tracin(
            "search", f"--index={tmp_path}/ix", *sets, f"--output={tmp_path}/found", flag
        )
        assert other.status == 2 and f"is of {kind}: leave it out" in other.err
    outcome = done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            f"--output={tmp_path}/found",
            f"--k={K}",
            *everywhere,
        )
    )
    done(
        tracin("score", *sets, f"--output={tmp_path}/exact", f"--k={K}", f"--normalize={normalize}")
    )
    for name in ("influence-00000.jsonl", "influence-00000.parquet"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "exact" / name).read_bytes()
    told = json.loads((tmp_path / "found" / "recall.json").read_text())
    assert told == {
        "k": K,
        "tests": 7,
        "proponents": {"recall": 1, "lowest": 1},
        "opponents": {"recall": 1, "lowest": 1},
    }
    assert "found 100.00 % of the 5 strongest proponents" in outcome.out


def test_scores_are_exact_and_recall_is_true_where_the_index_misses(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(
        tracin("index", sets[0], f"--output={tmp_path}/ix", "--projection=sketch", "--dimensions=3")
    )
    done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            f"--output={tmp_path}/found",
            "--k=5",
            "--oversampling=2",
        )
    )
    done(tracin("score", *sets, f"--output={tmp_path}/exact", "--k=5"))
    done(tracin("score", *sets, f"--output={tmp_path}/all", "--k=280"))
    found, exact, everything = (
        read_rows(str(tmp_path / name)) for name in ("found", "exact", "all")
    )
    shares: dict[str, list[float]] = {"proponents": [], "opponents": []}
    for row, best, whole in zip(found, exact, everything, strict=True):
        for sign, listed in shares.items():
            scores = {one["train_id"]: one["score"] for one in whole[sign]}
            assert all(scores[one["train_id"]] == one["score"] for one in row[sign])
            assert [abs(one["score"]) for one in row[sign]] == sorted(
                (abs(one["score"]) for one in row[sign]), reverse=True
            )
            wanted = {one["train_id"] for one in best[sign]}
            if wanted:
                listed.append(len(wanted & {one["train_id"] for one in row[sign]}) / len(wanted))
    told = json.loads((tmp_path / "found" / "recall.json").read_text())
    for sign, listed in shares.items():
        assert 0.1 < told[sign]["recall"] < 0.999
        assert told[sign]["recall"] == pytest.approx(np.mean(listed))
        assert told[sign]["lowest"] == min(listed)


def test_only_some_test_examples(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(tracin("index", sets[0], f"--output={tmp_path}/ix", "--projection=exact"))
    done(tracin("score", *sets, f"--output={tmp_path}/exact", "--k=5"))
    few = (
        f"--index={tmp_path}/ix",
        "--test_ids=test-00040,test-00003",
        "--k=5",
        "--oversampling=60",
    )
    done(tracin("search", *sets, *few, f"--output={tmp_path}/found"))
    exact = {row["test_id"]: row for row in read_rows(str(tmp_path / "exact"))}
    assert read_rows(str(tmp_path / "found")) == [exact["test-00003"], exact["test-00040"]]
    unknown = tracin(
        "search",
        *sets,
        f"--index={tmp_path}/ix",
        "--test_ids=test-00003,nobody",
        f"--output={tmp_path}/unknown",
    )
    assert unknown.status == 2 and "'nobody' not in" in unknown.err
    assert not (tmp_path / "unknown").exists()
    nobody = tracin(
        "search", *sets, f"--index={tmp_path}/ix", "--test_ids=", f"--output={tmp_path}/unknown"
    )
    assert nobody.status == 2 and "expected ids separated by commas, found ''" in nobody.err


def test_complete_directories_are_no_work(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    commands = {
        "v": ("export", f"--features={train}", "--dimensions=8"),
        "ix": ("index", sets[0], "--dimensions=8"),
        "found": ("search", f"--index={tmp_path}/ix", *sets),
    }
    for name, words in commands.items():
        done(tracin(*words, f"--output={tmp_path}/{name}"))
        assert "nothing to do" in done(tracin(*words, f"--output={tmp_path}/{name}")).out
    other = tracin("index", sets[0], "--dimensions=9", f"--output={tmp_path}/ix")
    assert other.status == 2 and "dimensions was 8, is 9" in other.err
    done(
        tracin(
            "search",
            *commands["found"][1:],
            "--overwrite",
            "--recall_sample=3",
            f"--output={tmp_path}/found",
        )
    )
    assert json.loads((tmp_path / "found" / "recall.json").read_text())["tests"] == 3
    written = manifests.read_kind(f"{tmp_path}/found", "output", "influence")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        "manifest.json",
        *(file.name for file in written.files),
    }


def test_vectors_of_zero_gradients(tracin: Run, tmp_path: pathlib.Path):
    features = draw(np.random.default_rng(4), 20, 2, 3, 6)
    features.loss_grads[5:9] = 0
    some = write_set(
        tmp_path / "some",
        [20],
        3,
        "x-",
        features=dataclasses.replace(
            features, loss_grad_norms=np.linalg.norm(features.loss_grads, axis=2)
        ),
    )
    assert (
        "4 of them zero"
        in done(
            tracin("export", f"--features={some}", f"--output={tmp_path}/v", "--dimensions=8")
        ).out
    )
    features.loss_grads[:] = 0
    none = write_set(
        tmp_path / "none",
        [20],
        3,
        "x-",
        features=dataclasses.replace(features, loss_grad_norms=np.zeros((20, 2))),
    )
    outcome = tracin(
        "index", f"--train_features={none}", f"--output={tmp_path}/ix", "--dimensions=8"
    )
    assert outcome.status == 1 and "all 20 vectors are zero" in outcome.err
    assert not (tmp_path / "ix" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dimensions=37",), "--dimensions=37: 37 numbers are more than the 36 of exact vectors"),
        (("--dimensions=1", "--projection=random"), "need one for each of the 2 checkpoints"),
        (("--dimensions=0",), "expected a whole number of at least 1"),
        (("--formats=csv",), "expected some of npy, parquet, tfrecord, faiss, vertex, found 'csv'"),
        (("--learning_rates=0.1",), "--learning_rates has 1 numbers"),
        (
            ("--projection_of=/nowhere", "--dimensions=8"),
            "--projection_of and --dimensions exclude each other",
        ),
        (
            ("--projection_of=/nowhere",),
            "--projection_of='/nowhere' holds no complete set, expected vectors or index",
        ),
    ],
)
def test_bad_flags_are_told_at_once(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, words: tuple[str, ...], message: str
):
    outcome = tracin("export", f"--features={train}", f"--output={tmp_path}/v", *words)
    assert outcome.status == 2 and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "v").exists()


def test_absurd_sizes_are_refused_unless_asked_for(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    from pipeline.commands import export

    monkeypatch.setattr(export, "_LARGE", 30)
    words = ("export", f"--features={train}", f"--output={tmp_path}/v", "--projection=exact")
    outcome = tracin(*words)
    assert (
        outcome.status == 2
        and "vectors of 36 numbers take 144 B an example, 40.3 KB in all" in outcome.err
    )
    assert done(tracin(*words, "--allow_large_vectors")).out


def test_features_of_another_model_are_refused(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    other = write_set(tmp_path / "other", [30], 5, "other-", model_fingerprint="another")
    again = write_set(tmp_path / "again", [30], 5, "again-")
    empty = write_set(tmp_path / "empty", [0], 5, "empty-")
    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    cases = {
        "another model than those of": (
            "export",
            f"--features={other}",
            f"--projection_of={tmp_path}/ix",
        ),
        "was built from another feature set": (
            "search",
            f"--index={tmp_path}/ix",
            f"--train_features={again}",
            f"--test_features={test_set}",
        ),
        "features of different models": (
            "search",
            f"--index={tmp_path}/ix",
            f"--train_features={train}",
            f"--test_features={other}",
        ),
        "holds no example": ("index", f"--train_features={empty}"),
        "expected index": (
            "search",
            f"--index={train}",
            f"--train_features={train}",
            f"--test_features={test_set}",
        ),
    }
    for message, words in cases.items():
        outcome = tracin(*words, f"--output={tmp_path}/out")
        assert outcome.status == 2 and message in outcome.err, outcome.err
        assert len(outcome.err.strip().splitlines()) == 1


def test_what_is_missing_is_told_wherever_the_result_is_shown(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(
        tracin("index", sets[0], f"--output={tmp_path}/ix", "--projection=sketch", "--dimensions=3")
    )
    for name, sample, told in (
        ("some", 5, "by the exact answer for 5 test examples"),
        ("none", 0, "was not measured"),
    ):
        words = (
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            f"--recall_sample={sample}",
            f"--output={tmp_path}/{name}",
        )
        assert told in done(tracin(*words)).out
        assert told in done(tracin("show", f"{tmp_path}/{name}")).out
        assert "looked for by an index" in (tmp_path / name / "report.html").read_text()


def test_progress_ends_where_it_was_to_end(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    from pipeline.commands import export, search

    def assert_complete(stages) -> None:
        counts = counters.snapshot()
        for stage in stages:
            assert counts[stage.done] == counts[stage.total] > 0, stage.title

    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    assert_complete(export.PROJECTING)
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            "--recall_sample=0",
            f"--output={tmp_path}/found",
        )
    )
    assert_complete([search._SEARCHING])


def test_an_empty_test_set_has_no_rows(tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path):
    empty = write_set(tmp_path / "empty", [0], 5, "empty-")
    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            f"--train_features={train}",
            f"--test_features={empty}",
            f"--output={tmp_path}/found",
        )
    )
    assert read_rows(str(tmp_path / "found")) == []


def test_without_faiss_the_extra_is_named(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    for words in (
        ("index", f"--train_features={train}"),
        ("export", f"--features={train}", "--formats=faiss"),
    ):
        outcome = tracin(*words, f"--output={tmp_path}/out")
        assert outcome.status == 2 and "pip install 'tracin-beam[neighbours]'" in outcome.err
    done(tracin("export", f"--features={train}", f"--output={tmp_path}/v", "--dimensions=8"))


def test_a_damaged_index_is_told(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    path = tmp_path / "ix" / "index-00001.faiss"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    outcome = tracin(
        "search",
        f"--index={tmp_path}/ix",
        f"--train_features={train}",
        f"--test_features={test_set}",
        f"--output={tmp_path}/f",
    )
    assert outcome.status == 1 and "index-00001.faiss is damaged" in outcome.err


def test_kinds_by_size():
    assert [faiss_index.kind_for("auto", n) for n in (1, 200_000, 200_001)] == [
        "flat",
        "flat",
        "ivf",
    ]
    assert faiss_index.kind_for("hnsw", 5) == "hnsw"


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_neighbours_of_both_signs(kind: str):
    rng = np.random.default_rng(0)
    vectors, queries = (
        rng.normal(size=(300, 8)).astype(np.float32),
        rng.normal(size=(20, 8)).astype(np.float32),
    )
    built = faiss_index.of_bytes(faiss_index.to_bytes(faiss_index.build(vectors, kind, 0)))
    found = faiss_index.nearest(built, queries, 10, nprobe=100, ef_search=300)
    products = queries @ vectors.T
    for sign in (0, 1):
        expected = np.argsort(-products if sign == 0 else products, axis=1)[:, :10]
        assert (
            np.mean(
                [
                    len(np.intersect1d(*pair)) / 10
                    for pair in zip(found[sign], expected, strict=True)
                ]
            )
            > 0.99
        )
    assert faiss_index.nearest(built, queries, 1000).shape == (2, 20, 300)


def test_a_projection_is_stored_with_its_vectors(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path
):
    done(tracin("export", f"--features={train}", f"--output={tmp_path}/v", "--dimensions=10"))
    found = manifests.read_kind(f"{tmp_path}/v", "output", "vectors")
    made = read_projection(f"{tmp_path}/v", found).project(features_of(train))
    np.testing.assert_allclose(made, vectors_in(tmp_path / "v"), rtol=1e-5, atol=1e-6)
    assert found.counts == {
        "vectors": 280,
        "zero": 0,
        "dimensions": 10,
        "coordinates": read_projection(f"{tmp_path}/v", found).kept,
    }
