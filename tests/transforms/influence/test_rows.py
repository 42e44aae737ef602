"""Rows as JSON lines and Parquet."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from transforms.core.topk import Ranking, TopK
from transforms.influence.protocol import ScoredBlock
from transforms.influence.records import RecordBlock, RecordScoring
from transforms.influence.rows import to_table, write_rows
from transforms.influence.sums import SumBlock, SumScoring
from transforms.storage.tables.tabular import to_jsonl


def block(
    labels: np.ndarray, candidate_labels: np.ndarray, probabilities: list[float], name: str = "t"
) -> ScoredBlock:
    n = len(labels)
    found = Ranking(
        np.array([0, 0, 2], np.int32),
        np.array([2.5, 0.1 + 0.2, 1e-300]),
        np.array([b"a", "é".encode(), b"c"]),
        candidate_labels,
    )
    nothing = found.take(np.zeros(3, bool))
    ids = np.array([f"{name}{i}".encode() for i in range(n)])
    own = np.array(probabilities, np.float32)
    return RecordBlock(
        test_ids=ids,
        label_probabilities=own,
        self_influence=np.arange(n, dtype=np.float64),
        best=TopK(found, nothing),
        labels=labels,
        predictions=labels,
        probabilities=own,
    )


CLASS_SCHEMA = RecordScoring().schema("class", 10)
CLASSES = block(np.array([[3], [4], [5]]), np.array([[7], [8], [9]]), [0.5, 0.25, 1.0])


def test_rows_of_summed_positions_tell_numbers_and_null_where_there_are_none():
    best = block(np.zeros((3, 1)), np.array([[7], [8], [9]]), [0.5] * 3).best
    summed = SumBlock(
        test_ids=np.array([b"t0", b"t1", b"t2"]),
        label_probabilities=np.array([0.5, 1.0, np.nan]),
        self_influence=np.arange(3.0),
        best=best,
        positions=np.array([4, 1, 2]),
        wrong=np.array([3, 0, -1]),
    )
    rows = to_table(summed, SumScoring().schema("class", 10)).to_pylist()
    assert rows[0] == {
        "test_id": "t0",
        "test_positions": 4,
        "test_wrong_positions": 3,
        "test_label_probability": 0.5,
        "self_influence": 0.0,
        "proponents": [
            {"train_id": "a", "train_positions": 7, "score": 2.5},
            {"train_id": "é", "train_positions": 8, "score": 0.1 + 0.2},
        ],
        "opponents": [],
    }
    assert [row["test_wrong_positions"] for row in rows] == [3, 0, None]
    assert rows[2]["test_label_probability"] is None


def test_rows_hold_the_documented_fields():
    rows = [
        json.loads(line)
        for line in to_jsonl(to_table(CLASSES, RecordScoring().schema("class", 10))).splitlines()
    ]
    assert rows[0] == {
        "test_id": "t0",
        "test_label": 3,
        "test_prediction": 3,
        "test_probability": 0.5,
        "self_influence": 0.0,
        "proponents": [
            {"train_id": "a", "train_label": 7, "score": 2.5},
            {"train_id": "é", "train_label": 8, "score": 0.1 + 0.2},
        ],
        "opponents": [],
    }
    assert [len(row["proponents"]) for row in rows] == [2, 0, 1]
    assert rows[2]["proponents"][0]["score"] == 1e-300


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "candidates", "expected", "first_candidate"),
    [
        (
            "multilabel",
            9,
            [[1, 4], [-1, -1], [2, -1]],
            [[0, -1], [-1, -1], [5, 6]],
            [[1, 4], [], [2]],
            [0],
        ),
        ("regression", 1, [[0.5], [1.5], [-2.0]], [[1.0], [2.0], [3.0]], [0.5, 1.5, -2.0], 1.0),
        (
            "regression",
            2,
            [[0.5, 1.0], [1.5, 2.0], [-2.0, 0.0]],
            [[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]],
            [[0.5, 1.0], [1.5, 2.0], [-2.0, 0.0]],
            [1.0, 9.0],
        ),
    ],
)
def test_labels_of_every_task(task, outputs, labels, candidates, expected, first_candidate):
    probability = [np.nan] * 3 if task == "regression" else [0.5] * 3
    table = to_table(
        block(np.array(labels), np.array(candidates), probability),
        RecordScoring().schema(task, outputs),
    )
    rows = [json.loads(line) for line in to_jsonl(table).splitlines()]
    assert [row["test_label"] for row in rows] == expected
    assert rows[0]["proponents"][0]["train_label"] == first_candidate
    assert rows[0]["test_probability"] == (None if task == "regression" else 0.5)


def test_files_hold_the_blocks_in_order_whatever_order_they_come_in(tmp_path):
    blocks = [
        (0, CLASSES),
        (3, block(np.array([[1], [2], [3]]), np.array([[7], [8], [9]]), [0.5] * 3, "u")),
    ]
    rows = RecordScoring().schema("class", 10)
    one = write_rows(str(tmp_path / "one"), 0, blocks, rows)
    other = write_rows(str(tmp_path / "other"), 0, reversed(blocks), rows)
    assert one == other
    for file in (one.jsonl, one.parquet):
        assert (tmp_path / "one" / file.name).read_bytes() == (
            tmp_path / "other" / file.name
        ).read_bytes()
    lines = (tmp_path / "one" / one.jsonl.name).read_bytes().splitlines()
    assert [json.loads(line)["test_id"] for line in lines] == ["t0", "t1", "t2", "u0", "u1", "u2"]
    table = pq.read_table(io.BytesIO((tmp_path / "one" / one.parquet.name).read_bytes()))
    assert table.to_pylist() == [json.loads(line) for line in lines]
    assert table.schema == rows
