"""`tracin show` of an audit and of influence."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import CLASSES, Tiny, example, write_records

ROOT = pathlib.Path(__file__).parents[3]
HOSTILE = "\x1b[31m[red]\u202eid"


@pytest.fixture(scope="module")
def results(tiny: Tiny, tmp_path_factory) -> pathlib.Path:
    """An audit, and influence of the examples on themselves, some of whose labels are wrong and one
    of whose ids is hostile.
    """
    from pipeline.cli import main

    directory = tmp_path_factory.mktemp("show")
    labels = np.where(np.arange(40) % 5, tiny.labels, (tiny.labels + 1) % CLASSES)
    ids = [HOSTILE, *(f"ex-{i:02d}" for i in range(1, 40))]
    payloads = [
        example(image=x, label=int(y), id=i)
        for i, x, y in zip(ids, tiny.images, labels, strict=True)
    ]
    write_records(directory / "examples" / "0.tfrecord", payloads)
    features = directory / "features"
    words = [
        f"--examples={directory}/examples/*",
        f"--checkpoints={tiny.glob}",
        "--id_key=id",
        f"--output={features}",
    ]
    assert main(["features", *words]) == 0
    assert (
        main(
            [
                "audit",
                f"--features={features}",
                "--min_suspicion=0.02",
                f"--output={directory / 'audit'}",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "score",
                f"--train_features={features}",
                f"--test_features={features}",
                "--k=3",
                f"--output={directory / 'influence'}",
            ]
        )
        == 0
    )
    return directory


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_audit_is_told_with_its_first_suspects(results, tracin):
    status, out, err = tracin("show", str(results / "audit"), "--rows=4")
    assert status == 0, err
    suspects = lines(results / "audit" / "suspects.jsonl")
    assert f"{len(suspects)} suspects" in out
    out, _, more = out.partition("duplicates whose labels conflict:")
    told = [line.split() for line in out.splitlines() if "0.tfrecord" in line]
    conflicting = [
        row for row in lines(results / "audit" / "duplicates.jsonl") if row["conflicting"]
    ]
    assert conflicting and [
        line.split()[1] for line in more.splitlines() if "0.tfrecord" in line
    ] == [row["example_id"] for row in conflicting[:4]]
    plain = [row for row in suspects[:4] if row["example_id"] != HOSTILE]
    assert len(told) == 4
    for row in plain:
        assert [
            row["example_id"],
            str(row["label"]),
            str(row["suggested_label"]),
            f"{row['suspicion']:.4g}",
        ] in [one[:4] for one in told]


def test_an_example_of_an_audit_is_told_whole(results, tracin):
    status, out, err = tracin("show", str(results / "audit"), "--id=ex-07")
    assert status == 0, err
    told = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert "duplicates of it" not in out
    assert (
        told["example_id"].strip() == "ex-07"
        and told["offset"].strip() == "7"
        and "suspicion" in told
    )


def test_the_duplicates_of_an_example_are_told_with_it(results, tracin):
    first, second = (row["example_id"] for row in lines(results / "audit" / "duplicates.jsonl")[:2])
    status, out, err = tracin("show", str(results / "audit"), f"--id={first}")
    assert status == 0, err
    _, _, more = out.partition("duplicates of it:")
    assert [line.split()[1] for line in more.splitlines() if "0.tfrecord" in line] == [second]


def test_influence_is_told_by_the_row_and_of_one_test_example_whole(results, tracin):
    status, out, err = tracin("show", str(results / "influence"), "--rows=2")
    assert status == 0, err
    rows = lines(next((results / "influence").glob("*.jsonl")))
    assert rows[1]["proponents"][0]["train_id"] in out and "ex-02" not in [
        line.split()[0] for line in out.splitlines() if line
    ]
    status, out, err = tracin("show", str(results / "influence"), "--id=ex-02")
    assert status == 0, err
    row = next(row for row in rows if row["test_id"] == "ex-02")
    told = [
        f"{one['train_id']} (labelled {one['train_label']}) {one['score']:+.4g}"
        for one in (*row["proponents"], *row["opponents"])
    ]
    assert [one for one in told if HOSTILE not in one and one not in out] == [] and len(told) > 3


def test_ids_command_no_terminal(results, tracin):
    status, out, err = tracin("show", str(results / "audit"), f"--id={HOSTILE}")
    assert status == 0, err
    assert "\x1b" not in out and "\u202e" not in out and "\ufffd[31m[red]\ufffdid" in out


def test_what_cannot_be_shown_is_told_in_one_line(results, tracin, tmp_path):
    for words, told in (
        ((str(tmp_path),), "is not a complete result"),
        ((str(results / "features"),), "holds features"),
        ((str(results / "audit"), "--id=nobody"), "no example with the id 'nobody'"),
        ((), "required: DIR"),
    ):
        status, _, err = tracin("show", *words)
        assert status == 2 and told in err and len(err.strip().splitlines()) == 1


def test_a_feature_set_is_named_in_a_process_that_read_none_before(
    results: pathlib.Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "show", str(results / "features")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("holds features: give the directory of an audit or of influence\n")
