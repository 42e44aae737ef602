"""`tracin audit` from feature sets to files: rows against NumPy on the whole arrays, reruns,
refusals.
"""

from __future__ import annotations

import csv
import json
import pathlib
import re
import shutil

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from tests.conftest import CLASSES, RATES, Tiny, example, write_records
from transforms.audit import suspicion
from transforms.audit.config import AuditConfig, AuditTuning
from transforms.audit.judge import AuditLabels
from transforms.audit.suspicion import LabelCounts, LeaveOneOut
from transforms.audit.write import WriteAudit
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.duplicates.config import DuplicateTuning
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest, Manifest

TWO_WORKERS = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture(scope="module")
def features(tiny: Tiny, tmp_path_factory) -> pathlib.Path:
    """The feature set of the tiny data with every fifth label wrong, from several files of
    examples.
    """
    directory = tmp_path_factory.mktemp("audit")
    labels = np.where(np.arange(40) % 5, tiny.labels, (tiny.labels + 1) % CLASSES)
    payloads = [
        example(image=x, label=int(y), id=f"ex-{i:02d}")
        for i, (x, y) in enumerate(zip(tiny.images, labels, strict=True))
    ]
    for i in range(20):
        write_records(directory / "examples" / f"{i:02d}.tfrecord", payloads[2 * i : 2 * i + 2])
    assert main(extraction(tiny, directory / "features", directory / "examples")) == 0
    return directory / "features"


def extraction(tiny: Tiny, output: pathlib.Path, examples: pathlib.Path, *more: str) -> list[str]:
    return [
        "features",
        f"--examples={examples}/*",
        f"--checkpoints={tiny.glob}",
        "--id_key=id",
        f"--output={output}",
        *more,
    ]


@pytest.fixture(scope="module")
def audit(features: pathlib.Path, tmp_path_factory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("result") / "audit"
    assert main(["audit", f"--features={features}", f"--output={output}"]) == 0
    return output


def read_all(directory: pathlib.Path) -> Features:
    features = read_set(directory)
    return features.read([Span(i, 0, count) for i, count in enumerate(features.counts)])


def rows(directory: pathlib.Path, name: str = "examples-*.parquet") -> list[dict]:
    return [row for path in sorted(directory.glob(name)) for row in pq.read_table(path).to_pylist()]


def damaged_copy(features: pathlib.Path, copy: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A copy of a feature set, and the one of its files whose last byte is another."""
    shutil.copytree(features, copy)
    damaged = sorted(copy.glob("features-*.tfrecord"))[3]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    return copy, damaged


def read_set(directory: pathlib.Path) -> FeatureSet:
    return FeatureSet(str(directory), manifests.read(str(directory), FeatureManifest, "features"))


def audit_by_library(
    config: AuditConfig,
    output: pathlib.Path,
    train: pathlib.Path,
    test: pathlib.Path | None = None,
    tuning: AuditTuning | None = None,
) -> None:
    """Composes an audit of committed feature sets in a pipeline of its own."""
    labels = AuditLabels(config, str(output), tuning or AuditTuning())
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        sets = pipeline | "Train" >> beam.Create([read_set(train)])
        if test:
            sets = {"train": sets, "test": pipeline | "Test" >> beam.Create([read_set(test)])}
        sets | labels | WriteAudit(config, str(output))


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_rows_are_what_numpy_finds_on_the_whole_set(audit, features):
    whole = read_all(features)
    found = rows(audit)
    labels = whole.labels[:, 0]
    assert [row["example_id"] for row in found] == [
        one.decode() for one in whole.example_ids.tolist()
    ]
    assert [row["label"] for row in found] == labels.tolist()
    assert [row["prediction"] for row in found] == whole.predictions[:, 0].tolist()
    influence = [
        sum(
            rate
            * np.sum(
                np.outer(whole.loss_grads[i, t], whole.activations[i, t]).astype(np.float64) ** 2
            )
            for t, rate in enumerate(RATES)
        )
        for i in range(len(whole))
    ]
    np.testing.assert_allclose([row["self_influence"] for row in found], influence, rtol=1e-5)
    np.testing.assert_allclose(
        [row["label_probability"] for row in found],
        whole.label_probabilities.mean(axis=1),
        rtol=1e-6,
    )
    x = [whole.activations[:, t].astype(np.float64) for t in range(len(RATES))]
    fitted = [LeaveOneOut.fit(suspicion.moments(one, labels, CLASSES)) for one in x]
    evidence = suspicion.all_evidence(fitted, x, labels)
    noise = suspicion.estimate_noise(LabelCounts.of(evidence, labels, CLASSES).surest(CLASSES))
    expected = suspicion.judge(evidence, labels, whole.label_probabilities.mean(axis=1), noise)
    np.testing.assert_allclose(
        [row["suspicion"] for row in found], expected.suspicion, rtol=1e-5, atol=1e-6
    )
    assert [row["suggested_label"] for row in found] == expected.suggested_labels.tolist()
    np.testing.assert_allclose(
        [row["suggested_probability"] for row in found], expected.suggested_probabilities, rtol=1e-5
    )


def test_suspects_and_summary_follow_from_the_rows(features, tracin, tmp_path):
    output = tmp_path / "audit"
    status, out, err = tracin(
        "audit",
        f"--features={features}",
        f"--output={output}",
        "--min_suspicion=0.02",
        "--max_suspects_per_class=3",
    )
    assert status == 0, err
    found = rows(output)
    suspected = sorted(
        (row for row in found if row["suspicion"] >= 0.02),
        key=lambda row: (-row["suspicion"], row["example_id"]),
    )
    assert len(suspected) > 9, "the case is too easy to show anything"
    listed, seen = [], dict.fromkeys(range(CLASSES), 0)
    for row in suspected:
        seen[row["label"]] += 1
        if seen[row["label"]] <= 3:
            listed.append(row)
    told = rows(output, "suspects.parquet")
    means = {
        k: np.mean([row["self_influence"] for row in found if row["label"] == k])
        for k in range(CLASSES)
    }
    for row in told:
        assert row.pop("relative_self_influence") == pytest.approx(
            row["self_influence"] / means[row["label"]]
        )
    assert told == listed
    lines = [json.loads(line) for line in (output / "suspects.jsonl").read_text().splitlines()]
    assert [line["example_id"] for line in lines] == [row["example_id"] for row in listed]
    sheet = list(csv.DictReader((output / "suspects.csv").open(newline="")))
    assert [row["example_id"] for row in sheet] == [row["example_id"] for row in listed]
    for one, row in zip(sheet, listed, strict=True):
        sure = row["suggested_label"] != row["label"] and row["suggested_probability"] > 0.5
        assert (one["action"], one["suggested_label"]) == (
            ("relabel", str(row["suggested_label"])) if sure else ("drop", "")
        )
        assert (float(one["suspicion"]), int(one["label"]), int(one["offset"])) == (
            row["suspicion"],
            row["label"],
            row["offset"],
        )
    assert {one["action"] for one in sheet} == {"relabel", "drop"}
    summary = json.loads((output / "summary.json").read_text())
    assert (
        summary["examples"] == 40
        and summary["suspects"] == len(suspected)
        and summary["listed_suspects"] == len(listed)
    )
    assert summary["expected_wrong_labels"] == pytest.approx(sum(row["suspicion"] for row in found))
    assert summary["accuracy"] == np.mean([row["prediction"] == row["label"] for row in found])
    assert (
        out.startswith(f"audit: 40 examples, {len(suspected)} suspects")
        and f"{len(listed)} of them are listed" in out
    )
    total = sum(row["self_influence"] for row in found)
    for one in summary["classes"]:
        of_class = [row for row in found if row["label"] == one["label"]]
        assert one["examples"] == len(of_class)
        assert one["accuracy"] == np.mean([row["prediction"] == row["label"] for row in of_class])
        assert one["self_influence_share"] == pytest.approx(
            sum(row["self_influence"] for row in of_class) / total
        )
        assert (
            one["suspects"]
            == seen[one["label"]]
            == sum(other["suspects"] for other in one["suggested"])
        )
        for other in one["suggested"]:
            assert other["suspects"] == sum(
                row["suggested_label"] == other["label"]
                for row in suspected
                if row["label"] == one["label"]
            )
    assert sum(one["examples"] for one in summary["classes"]) == 40


def test_the_report_shows_the_suspects_with_their_pictures(features, tracin, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"<class {k}>\n" for k in range(CLASSES)))
    output = tmp_path / "audit"
    status, _, err = tracin(
        "audit",
        f"--features={features}",
        f"--output={output}",
        "--min_suspicion=0.02",
        f"--class_names={names}",
    )
    assert status == 0, err
    page = (output / "report.html").read_text()
    listed = rows(output, "suspects.parquet")
    places = [page.index(f'data-id="{row["example_id"]}"') for row in listed]
    assert places == sorted(places) and f"{len(listed)} of 40 labels are suspects" in page
    assert "&lt;class 1&gt;" in page and "<class" not in page
    assert page.count('src="data:image/png;base64,') == page.count("<img ") > len(listed)
    assert all(f'alt="the picture of {row["example_id"]}"' in page for row in listed)
    whole = {row["example_id"]: row for row in rows(output)}
    for row in listed:
        source, offset = pathlib.Path(row["source"]), row["offset"]
        number = int(row["example_id"].removeprefix("ex-"))
        assert (source.name, offset) == (f"{number // 2:02d}.tfrecord", number % 2) and whole[
            row["example_id"]
        ]["source"] == str(source)


def test_names_of_other_classes_are_refused(features, tracin, tmp_path):
    names = tmp_path / "names.txt"
    for content, told in (
        ("one\n", f"has 1 lines, the features are of {CLASSES} classes"),
        (None, "cannot be read"),
    ):
        names.unlink(missing_ok=True)
        if content:
            names.write_text(content)
        status, _, err = tracin(
            "audit",
            f"--features={features}",
            f"--output={tmp_path / 'a'}",
            f"--class_names={names}",
        )
        assert (
            status == 2
            and told in err
            and "--class_names" in err
            and len(err.strip().splitlines()) == 1
        )


def test_several_processes_write_the_same_bytes(audit, features, tracin, tmp_path):
    output = tmp_path / "audit"
    status, _, err = tracin("audit", f"--features={features}", f"--output={output}", *TWO_WORKERS)
    assert status == 0, err
    assert content(output) == content(audit)


def test_the_library_writes_the_same_bytes(audit, features, tmp_path):
    audit_by_library(AuditConfig(), tmp_path / "audit", features)
    assert content(tmp_path / "audit") == content(audit)


def test_a_complete_audit_is_no_work_and_other_settings_are_refused(audit, features, tracin):
    before = content(audit)
    status, out, _ = tracin("audit", f"--features={features}", f"--output={audit}")
    assert status == 0 and "nothing to do" in out
    status, _, err = tracin(
        "audit", f"--features={features}", f"--output={audit}", "--min_suspicion=0.9"
    )
    assert status == 2 and "min_suspicion" in err and "--overwrite" in err
    assert content(audit) == before


def test_overwrite_leaves_nothing_of_the_old_audit(audit, features, tracin, tmp_path):
    output = tmp_path / "audit"
    tracin("audit", f"--features={features}", f"--output={output}", "--min_suspicion=0")
    (output / "examples-00099.parquet").write_bytes(b"of a run that died")
    status, _, err = tracin("audit", f"--features={features}", f"--output={output}", "--overwrite")
    assert status == 0, err
    assert content(output) == content(audit)


def test_a_damaged_feature_file_ends_the_run_without_a_manifest(features, tracin, tmp_path):
    copy, damaged = damaged_copy(features, tmp_path / "features")
    status, _, err = tracin("audit", f"--features={copy}", f"--output={tmp_path / 'audit'}")
    assert status == 1 and damaged.name in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "audit" / "manifest.json").exists()


def test_what_cannot_be_audited_is_refused_in_one_line(features, audit, tiny, tracin, tmp_path):
    status, _, err = tracin("audit", f"--features={tmp_path}", f"--output={tmp_path / 'a'}")
    assert status == 2 and "not a complete set" in err
    status, _, err = tracin("audit", f"--features={audit}", f"--output={tmp_path / 'a'}")
    assert status == 2 and "holds audit, expected features" in err
    write_records(tmp_path / "examples" / "0.tfrecord", tiny.payloads()[:5])
    assert (
        main(extraction(tiny, tmp_path / "predicted", tmp_path / "examples", "--labels=predicted"))
        == 0
    )
    status, _, err = tracin(
        "audit", f"--features={tmp_path / 'predicted'}", f"--output={tmp_path / 'a'}"
    )
    assert status == 2 and "predicted labels" in err and "--labels=given" in err
    write_records(tmp_path / "none" / "0.tfrecord", [])
    assert main(extraction(tiny, tmp_path / "empty", tmp_path / "none")) == 0
    status, _, err = tracin(
        "audit", f"--features={tmp_path / 'empty'}", f"--output={tmp_path / 'a'}"
    )
    assert status == 2 and "holds no example" in err
    assert not (tmp_path / "a").exists()


def test_without_a_bias_the_judgement_is_the_same(audit, features, tiny, tracin, tmp_path):
    examples = features.parent / "examples"
    assert main(extraction(tiny, tmp_path / "features", examples, "--include_bias=false")) == 0
    status, _, err = tracin(
        "audit", f"--features={tmp_path / 'features'}", f"--output={tmp_path / 'audit'}"
    )
    assert status == 0, err
    for one, other in zip(rows(audit), rows(tmp_path / "audit"), strict=True):
        assert one["suspicion"] == pytest.approx(other["suspicion"], rel=1e-9)
        assert one["self_influence"] > other["self_influence"]


def test_from_examples_to_suspects_in_one_graph(audit, features, tiny, tracin, tmp_path):
    words = [
        f"--examples={features.parent / 'examples'}/*",
        f"--checkpoints={tiny.glob}",
        "--id_key=id",
        f"--output={tmp_path / 'audit'}",
    ]
    status, out, err = tracin("audit", *words)
    assert status == 0, err
    assert "features: 40 examples" in out and "read 40 examples" in out
    assert rows(tmp_path / "audit") == rows(audit)
    assert (tmp_path / "audit" / "suspects.jsonl").read_bytes() == (
        audit / "suspects.jsonl"
    ).read_bytes()
    status, out, _ = tracin("audit", *words)
    assert status == 0 and "nothing to do" in out
    # Another question of the same features extracts nothing again.
    status, out, err = tracin(
        "audit",
        *words,
        "--base=nowhere",
        "--learning_rates=1,1,1",
        f"--output={tmp_path / 'audit'}",
    )
    assert status == 2 and "learning_rates" in err
    (tmp_path / "audit" / "manifest.json").unlink()
    status, out, err = tracin("audit", *words)
    assert status == 0, err
    assert "already complete, used as they are" in out and "read" not in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--examples=a",), "missing --checkpoints"),
        (("--checkpoints=a",), "missing --examples"),
        ((), "missing --features, or --examples and --checkpoints"),
        (("--features=a", "--examples=b"), "exclude each other"),
        (("--features=a", "--max_shift=0.1"), "--max_shift needs an audit to compare with"),
        (("--features=a", "--fail_on_drift"), "--fail_on_drift needs a threshold"),
        (("--features=a", "--slice_keys=b"), "--slice_keys needs a test set"),
        (("--features=a", "--test_examples=b"), "--test_examples says how features are extracted"),
        (
            ("--examples=a", "--checkpoints=c", "--test_examples=b", "--test_features=d"),
            "exclude each other",
        ),
        (("--features=a", "--batch_size=3"), "--batch_size says how features are extracted"),
    ],
)
def test_flags_that_do_not_go_together_are_told(tracin, tmp_path, words, told):
    status, _, err = tracin("audit", *words, f"--output={tmp_path}")
    assert status == 2 and told in err


def test_examples_without_any_record_end_the_run_in_one_line(tiny, tracin, tmp_path):
    write_records(tmp_path / "examples" / "0.tfrecord", [])
    status, _, err = tracin(
        "audit",
        f"--examples={tmp_path}/examples/*",
        f"--checkpoints={tiny.glob}",
        f"--output={tmp_path / 'audit'}",
    )
    assert status == 1 and "holds no example" in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "audit" / "manifest.json").exists()


def test_what_changed_since_an_earlier_audit_is_told(audit, features, tiny, tracin, tmp_path):
    # Of the examples 0, 5, … the labels were wrong: half are put right, example 1 is gone, a new
    # one has come.
    labels = np.where(np.arange(40) % 10, tiny.labels, (tiny.labels + 1) % CLASSES)
    payloads = [
        example(image=x, label=int(y), id=f"ex-{i:02d}")
        for i, (x, y) in enumerate(zip(tiny.images, labels, strict=True))
    ]
    payloads[1] = example(image=tiny.images[1], label=int(labels[1]), id="ex-99")
    for i in range(4):
        write_records(tmp_path / "examples" / f"{i:02d}.tfrecord", payloads[10 * i : 10 * i + 10])
    assert main(extraction(tiny, tmp_path / "features", tmp_path / "examples")) == 0
    output = tmp_path / "audit"
    status, out, err = tracin(
        "audit", f"--features={tmp_path / 'features'}", f"--output={output}", f"--previous={audit}"
    )
    assert status == 0, err
    told = json.loads((output / "summary.json").read_text())["drift"]
    assert told["examples"] == {"new": 1, "gone": 1, "changed": 4, "relabelled": 4}
    now, then = (
        {row["example_id"]: row for row in rows(directory)} for directory in (output, audit)
    )
    suspects = [
        {one for one, row in side.items() if row["suspicion"] >= 0.5} for side in (now, then)
    ]
    assert told["suspects"] == {
        "appeared": len(suspects[0] - suspects[1]),
        "stayed": len(suspects[0] & suspects[1]),
        "fixed": len((suspects[1] - suspects[0]) & now.keys()),
        "gone": len(suspects[1] - now.keys()),
    }
    assert told["suspects"]["stayed"] > 0
    changes = {row["example_id"]: row for row in rows(output, "changes-*.parquet")}
    assert {one for one, row in changes.items() if row["example"] == "relabelled"} == {
        "ex-05",
        "ex-15",
        "ex-25",
        "ex-35",
    }
    assert changes["ex-99"]["example"] == "new" and changes["ex-99"]["previous_label"] is None
    assert changes["ex-01"]["example"] == "gone" and changes["ex-01"]["label"] is None
    assert f"since {audit}:" in out and "1 new, 1 gone, 4 changed, 4 relabelled" in out
    status, out, _ = tracin(
        "audit", f"--features={features}", f"--output={tmp_path / 'same'}", f"--previous={audit}"
    )
    assert (
        status == 0
        and "0 new, 0 gone, 0 changed, 0 relabelled" in out
        and "0 appeared" in out
        and "distance 0.000" in out
    )


def test_only_another_audit_is_compared_with(audit, features, tracin, tmp_path):
    for previous, told in (
        (features, "holds features, expected audit"),
        (tmp_path / "no", "no complete set"),
        (tmp_path / "a", "no complete"),
    ):
        status, _, err = tracin(
            "audit",
            f"--features={features}",
            f"--output={tmp_path / 'a'}",
            f"--previous={previous}",
        )
        assert status == 2 and told in err and "--previous" in err
    status, _, err = tracin(
        "audit", f"--features={features}", f"--output={audit}", f"--previous={audit}", "--overwrite"
    )
    assert status == 2 and "directory of its own" in err


def test_the_manifest_lists_what_is_there(audit):
    found = manifests.read(str(audit), Manifest, "output")
    assert found.kind == "audit" and found.counts["examples"] == 40
    assert {file.name for file in found.files} | {"manifest.json"} == set(content(audit))
    assert {file.name: file.size for file in found.files}.items() <= {
        name: len(data) for name, data in content(audit).items()
    }.items()


def test_a_crossed_threshold_is_told_and_fails_when_all_is_written(
    audit, features, tracin, tmp_path
):
    output = tmp_path / "audit"
    words = [
        "audit",
        f"--features={features}",
        f"--output={output}",
        f"--previous={audit}",
        "--min_suspicion=0.02",
    ]
    words += [
        "--max_suspect_fraction=0.1",
        "--max_appeared_suspects=0",
        "--max_shift=0",
        "--fail_on_drift",
    ]
    # A second try finds all complete, and must not hide what the first found.
    for _ in range(2):
        status, _, err = tracin(*words)
        assert status == 3, err
        assert (
            len(err.strip().splitlines()) == 1
            and "--max_suspect_fraction=0.1" in err
            and "--max_appeared_suspects=0" in err
        )
    summary = json.loads((output / "summary.json").read_text())
    suspected = [row for row in rows(output) if row["suspicion"] >= 0.02]
    appeared = [row for row in suspected if row["suspicion"] < 0.5]
    assert {row["threshold"]: row["found"] for row in summary["crossed"]} == {
        "max_suspect_fraction": len(suspected) / 40,
        "max_appeared_suspects": len(appeared),
    }
    assert "Crossed thresholds" in (output / "report.html").read_text()
    status, _, err = tracin(*words[:-1], f"--output={tmp_path / 'told'}")
    assert status == 0, err
    assert content(tmp_path / "told") == content(output)
    status, _, err = tracin(
        "audit",
        f"--features={features}",
        f"--output={tmp_path / 'calm'}",
        "--max_suspect_fraction=1",
        "--fail_on_drift",
    )
    assert status == 0, err


def test_a_run_that_fails_otherwise_is_no_crossed_threshold(features, tracin, tmp_path):
    copy, _ = damaged_copy(features, tmp_path / "features")
    status, _, _ = tracin(
        "audit",
        f"--features={copy}",
        f"--output={tmp_path / 'a'}",
        "--max_suspect_fraction=0",
        "--fail_on_drift",
    )
    assert status == 1


def test_influence_on_a_test_set_is_the_mean_of_all_scores(features, tiny, tracin, tmp_path):
    # No test example has the label 0.
    chosen = np.flatnonzero(tiny.labels != 0)
    payloads = [
        example(image=tiny.images[i], label=int(tiny.labels[i]), id=f"test-{i:02d}") for i in chosen
    ]
    for i in range(3):
        write_records(tmp_path / "examples" / f"{i}.tfrecord", payloads[i::3])
    assert main(extraction(tiny, tmp_path / "test", tmp_path / "examples")) == 0
    words = [f"--features={features}", f"--test_features={tmp_path / 'test'}"]
    status, _, err = tracin(
        "audit", *words, f"--output={tmp_path / 'audit'}", "--min_suspicion=0.02"
    )
    assert status == 0, err
    train, test = read_all(features), read_all(tmp_path / "test")
    scores = sum(
        rate
        * np.einsum("ic,jc->ij", *(one.loss_grads[:, t].astype(float) for one in (train, test)))
        * np.einsum("id,jd->ij", *(one.activations[:, t].astype(float) for one in (train, test)))
        for t, rate in enumerate(RATES)
    )
    found = rows(tmp_path / "audit")
    np.testing.assert_allclose(
        [row["test_influence"] for row in found], scores.mean(axis=1), rtol=1e-7, atol=1e-12
    )
    labels, of_test = train.labels[:, 0], test.labels[:, 0]
    told = json.loads((tmp_path / "audit" / "summary.json").read_text())["test"]
    by_id = {row["example_id"]: row["test_influence"] for row in found}
    assert [one["example_id"] for one in told["helpful"]] == sorted(
        (k for k in by_id if by_id[k] > 0), key=lambda k: -by_id[k]
    )
    assert [one["example_id"] for one in told["harmful"]] == sorted(
        (k for k in by_id if by_id[k] < 0), key=lambda k: by_id[k]
    )
    assert len(told["helpful"]) > 5 and len(told["harmful"]) > 5
    for k in range(CLASSES):
        column = [row["test_influence_by_label"][k] for row in found]
        if k == 0:
            assert column == [None] * 40
        else:
            np.testing.assert_allclose(
                column, scores[:, of_test == k].mean(axis=1), rtol=1e-7, atol=1e-12
            )
        between = {row["label"]: row["on"] for row in told["between_labels"]}
        for j in range(CLASSES):
            expected = (
                None
                if j == 0
                else pytest.approx(scores[labels == k][:, of_test == j].mean(), rel=1e-6, abs=1e-12)
            )
            assert between[k][j] == expected
    assert "Influence on the test set" in (tmp_path / "audit" / "report.html").read_text()
    status, _, err = tracin(
        "audit", *words, f"--output={tmp_path / 'two'}", "--min_suspicion=0.02", *TWO_WORKERS
    )
    assert status == 0, err
    assert content(tmp_path / "two") == content(tmp_path / "audit")


def test_a_test_set_of_another_model_is_refused(features, tiny_softmax, tiny, tracin, tmp_path):
    write_records(tmp_path / "examples" / "0.tfrecord", tiny.payloads()[:5])
    assert main(extraction(tiny_softmax, tmp_path / "test", tmp_path / "examples")) == 0
    status, _, err = tracin(
        "audit",
        f"--features={features}",
        f"--test_features={tmp_path / 'test'}",
        f"--output={tmp_path / 'a'}",
    )
    assert status == 2 and "different models" in err and len(err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def repeated(tiny: Tiny, tmp_path_factory) -> pathlib.Path:
    """The feature set of the tiny data followed by copies of its first examples: of 4 with another
    label, of 2 with theirs.
    """
    directory = tmp_path_factory.mktemp("repeated")
    images = np.concatenate([tiny.images, tiny.images[:6]])
    labels = np.concatenate([tiny.labels, (tiny.labels[:4] + 1) % CLASSES, tiny.labels[4:6]])
    payloads = [
        example(image=x, label=int(y), id=f"ex-{i:02d}")
        for i, (x, y) in enumerate(zip(images, labels, strict=True))
    ]
    for i in range(5):
        write_records(directory / "examples" / f"{i:02d}.tfrecord", payloads[i::5])
    assert main(extraction(tiny, directory / "features", directory / "examples")) == 0
    return directory / "features"


def cosines(features: Features) -> np.ndarray:
    moved = features.activations[:, :, :-1].astype(np.float64)
    moved -= moved.mean(axis=0)
    return np.einsum(
        "itd,jtd->ij", *[moved / np.linalg.norm(moved, axis=2, keepdims=True)] * 2
    ) / len(RATES)


def test_duplicates_are_the_equal_ones_and_the_alike_ones_with_other_labels(
    repeated, tracin, tmp_path
):
    words = ["audit", f"--features={repeated}", "--min_similarity=0.98"]
    status, out, err = tracin(*words, f"--output={tmp_path / 'audit'}")
    assert status == 0, err
    whole = read_all(repeated)
    ids, labels, alike = (
        [one.decode() for one in whole.example_ids.tolist()],
        whole.labels[:, 0],
        cosines(whole),
    )
    joined = {i: {i} for i in range(len(whole))}
    own = np.full(len(whole), -np.inf)
    for i, j in np.argwhere(np.triu(np.ones_like(alike), 1)).tolist():
        same = whole.activations[i].tobytes() == whole.activations[j].tobytes()
        if same or (alike[i, j] >= 0.98 and labels[i] != labels[j]):
            own[[i, j]] = np.maximum(own[[i, j]], 1 if same else alike[i, j])
            union = joined[i] | joined[j]
            joined.update(dict.fromkeys(union, union))
    expected = {frozenset(ids[i] for i in one) for one in joined.values() if len(one) > 1}
    assert {frozenset((f"ex-{i:02d}", f"ex-{40 + i}")) for i in (4, 5)} <= expected and len(
        expected
    ) > 4
    found = rows(tmp_path / "audit", "duplicates.parquet")
    groups: dict[int, list[dict]] = {}
    for row in found:
        groups.setdefault(row["group"], []).append(row)
    assert {frozenset(row["example_id"] for row in one) for one in groups.values()} == expected
    assert list(groups) == list(range(len(groups)))
    conflicts = [len({row["label"] for row in one}) > 1 for one in groups.values()]
    assert conflicts == sorted(conflicts, reverse=True) and conflicts.count(False) == 2
    by_id = {row["example_id"]: row for row in rows(tmp_path / "audit")}
    for row in found:
        assert row["similarity"] == pytest.approx(own[ids.index(row["example_id"])], abs=1e-6)
        assert row["conflicting"] is conflicts[row["group"]]
        assert {k: row[k] for k in by_id[row["example_id"]] if k in row} == {
            k: v for k, v in by_id[row["example_id"]].items() if k in row
        }
    assert [
        json.loads(line)
        for line in (tmp_path / "audit" / "duplicates.jsonl").read_text().splitlines()
    ] == found
    told = json.loads((tmp_path / "audit" / "summary.json").read_text())["duplicates"]
    assert (
        told["groups"] == len(groups)
        and told["conflicting_groups"] == sum(conflicts)
        and told["pairs_left_out"] == 0
    )
    assert told["examples"] == told["listed_examples"] == len(found)
    assert told["conflicting_examples"] == sum(row["conflicting"] for row in found)
    assert f"{sum(conflicts)} groups of duplicates whose labels conflict" in out
    page = (tmp_path / "audit" / "report.html").read_text()
    assert (
        page.count('class="group"') == sum(conflicts)
        and "Duplicates with conflicting labels" in page
    )
    status, _, err = tracin(*words, f"--output={tmp_path / 'two'}", *TWO_WORKERS)
    assert status == 0, err
    assert content(tmp_path / "two") == content(tmp_path / "audit")
    # Larger sets are compared part by part.
    tuning = AuditTuning(duplicates=DuplicateTuning(rows_at_once=0, rows_per_part=1 << 10))
    audit_by_library(AuditConfig(min_similarity=0.98), tmp_path / "parts", repeated, tuning=tuning)
    assert content(tmp_path / "parts") == content(tmp_path / "audit")


def test_pairs_beyond_the_budget_are_counted(repeated, tmp_path):
    tuning = AuditTuning(duplicates=DuplicateTuning(vector_bytes=0))
    audit_by_library(AuditConfig(min_similarity=0.9), tmp_path / "audit", repeated, tuning=tuning)
    told = json.loads((tmp_path / "audit" / "summary.json").read_text())["duplicates"]
    assert told["pairs_left_out"] > 0 and told["groups"] == 6


def test_suspects_stand_beside_their_neighbours_with_another_label(repeated, tracin, tmp_path):
    status, _, err = tracin(
        "audit", f"--features={repeated}", "--min_suspicion=0.02", f"--output={tmp_path / 'audit'}"
    )
    assert status == 0, err
    page = (tmp_path / "audit" / "report.html").read_text()
    cards = re.findall(r'<li data-id="([^"]*)".*?<ul class="near">(.*?)</ul>', page, re.DOTALL)
    suspects = rows(tmp_path / "audit", "suspects.parquet")
    assert [example_id for example_id, _ in cards] == [row["example_id"] for row in suspects]
    whole = read_all(repeated)
    ids, labels, alike = (
        [one.decode() for one in whole.example_ids.tolist()],
        whole.labels[:, 0],
        cosines(whole),
    )
    assert len(suspects) > 5
    shown = set()
    for row, (_, near) in zip(suspects, cards, strict=True):
        own = ids.index(row["example_id"])
        wanted = (
            labels == row["suggested_label"]
            if row["suggested_label"] != row["label"]
            else labels != row["label"]
        )
        best = sorted(
            np.flatnonzero(wanted).tolist(), key=lambda j: (-round(alike[own, j], 9), ids[j])
        )[:3]
        neighbours = re.findall(r"<li>(.*?)</li>", near, re.DOTALL)
        names = [re.search("<bdi>(.*?)</bdi>", item)[1] for item in neighbours]
        assert [alike[own, ids.index(name)] for name in names] == pytest.approx(
            [alike[own, j] for j in best], abs=1e-6
        )
        assert all(wanted[ids.index(name)] for name in names)
        similarities = [float(re.search('dim">(.*?)<', item)[1]) for item in neighbours]
        assert similarities == pytest.approx([alike[own, j] for j in best], abs=6e-4)
        assert all('<img src="data:image/png;base64,' in item for item in neighbours)
        shown |= set(names)
    assert len(shown) > 5


def test_a_test_set_is_extracted_in_the_same_graph_and_sliced_by_its_keys(
    features, tiny, tracin, tmp_path
):
    places = ["north" if i % 3 else "<south>" for i in range(40)]
    payloads = [
        example(
            image=tiny.images[i],
            label=int(tiny.labels[i]),
            id=f"test-{i:02d}",
            place=places[i],
            hour=i % 2,
            serial=f"{i}",
        )
        for i in range(40)
    ]
    for i in range(3):
        write_records(tmp_path / "examples" / f"{i}.tfrecord", payloads[i::3])
    words = [f"--checkpoints={tiny.glob}", "--id_key=id"]
    train = [
        f"--examples={features.parent / 'examples'}/*",
        f"--test_examples={tmp_path / 'examples'}/*",
        *words,
    ]
    status, _, err = tracin(
        "audit", *train, "--slice_keys=country", f"--output={tmp_path / 'audit'}"
    )
    assert (
        status == 2
        and "has no key 'country'" in err
        and "name the right one with --slice_keys" in err
    )
    status, out, err = tracin(
        "audit", *train, "--slice_keys=place,hour", f"--output={tmp_path / 'audit'}"
    )
    assert status == 0, err
    assert (
        "no duplicates whose labels conflict" in out or "of duplicates whose labels conflict" in out
    )
    assert "test_features: 40 examples" in out and "read 80 examples" in out
    whole, test = read_all(features), read_all(tmp_path / "audit" / "test_features")
    scores = sum(
        rate
        * np.einsum("ic,jc->ij", *(one.loss_grads[:, t].astype(float) for one in (whole, test)))
        * np.einsum("id,jd->ij", *(one.activations[:, t].astype(float) for one in (whole, test)))
        for t, rate in enumerate(RATES)
    )
    number = [int(one.decode().removeprefix("test-")) for one in test.example_ids.tolist()]
    told = json.loads((tmp_path / "audit" / "summary.json").read_text())["test"]
    assert [(one["key"], one["value"]) for one in told["slices"]] == [
        ("place", "<south>"),
        ("place", "north"),
        ("hour", "0"),
        ("hour", "1"),
    ]
    found = rows(tmp_path / "audit")
    for i, one in enumerate(told["slices"]):
        of_slice = np.array(
            [(places[n] if one["key"] == "place" else str(n % 2)) == one["value"] for n in number]
        )
        expected = scores[:, of_slice].mean(axis=1)
        np.testing.assert_allclose(
            [row["test_influence_by_slice"][i] for row in found], expected, rtol=1e-7, atol=1e-12
        )
        assert one["examples"] == of_slice.sum() and one["mean_influence"] == pytest.approx(
            expected.mean(), rel=1e-6, abs=1e-12
        )
        order = np.argsort(expected)
        assert [row["example_id"] for row in one["harmful"]] == [
            found[j]["example_id"] for j in order[:5]
        ]
        assert [row["example_id"] for row in one["helpful"]] == [
            found[j]["example_id"] for j in order[::-1][:5]
        ]
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "Influence on slices" in page and "&lt;south&gt;" in page
    # The same from feature sets, by two workers.
    kept = "--keep_keys=place,hour,serial"
    assert main(extraction(tiny, tmp_path / "test", tmp_path / "examples", kept)) == 0
    sets = [f"--features={features}", f"--test_features={tmp_path / 'test'}"]
    status, _, err = tracin(
        "audit", *sets, "--slice_keys=place,hour", f"--output={tmp_path / 'sets'}", *TWO_WORKERS
    )
    assert status == 0, err
    assert rows(tmp_path / "sets") == rows(tmp_path / "audit")
    status, _, err = tracin("audit", *sets, "--slice_keys=colour", f"--output={tmp_path / 'no'}")
    assert (
        status == 2
        and "--slice_keys names 'colour'" in err
        and "--keep_keys=place,hour,serial,colour" in err
    )


def test_slices_beyond_the_budget_are_left_out_and_told(features, tiny, tmp_path):
    payloads = [
        example(
            image=tiny.images[i], label=int(tiny.labels[i]), id=f"t-{i}", serial=f"{i}", half=i % 2
        )
        for i in range(40)
    ]
    write_records(tmp_path / "examples" / "0.tfrecord", payloads)
    assert (
        main(extraction(tiny, tmp_path / "test", tmp_path / "examples", "--keep_keys=serial,half"))
        == 0
    )
    audit_by_library(
        AuditConfig(slice_keys=("serial", "half")),
        tmp_path / "audit",
        features,
        tmp_path / "test",
        AuditTuning(slice_values=30),
    )
    told = json.loads((tmp_path / "audit" / "summary.json").read_text())["test"]
    assert told["slice_keys_left_out"] == ["serial"] and [
        one["value"] for one in told["slices"]
    ] == ["0", "1"]


def test_an_empty_test_set_ends_the_run_in_one_line(features, tiny, tracin, tmp_path):
    write_records(tmp_path / "examples" / "0.tfrecord", [])
    words = [
        f"--examples={features.parent / 'examples'}/*",
        f"--test_examples={tmp_path / 'examples'}/*",
        f"--checkpoints={tiny.glob}",
    ]
    status, _, err = tracin("audit", *words, "--id_key=id", f"--output={tmp_path / 'audit'}")
    assert status == 1 and "holds no test example" in err.splitlines()[-1]
