"""Columns and rows of result files."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from transforms.storage.tables.tabular import label_array, label_type, string_array, to_jsonl


@pytest.mark.parametrize(
    ("task", "outputs", "expected"),
    [
        ("class", 9, pa.int64()),
        ("binary", 1, pa.int64()),
        ("multilabel", 3, pa.list_(pa.int64())),
        ("regression", 1, pa.float64()),
        ("regression", 2, pa.list_(pa.float64())),
    ],
)
def test_a_task_has_a_type_of_labels(task: str, outputs: int, expected: pa.DataType) -> None:
    assert label_type(task, outputs) == expected


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (np.array([[3], [1]]), pa.int64(), [3, 1]),
        (np.array([[0.5], [2.0]]), pa.float64(), [0.5, 2.0]),
        (np.array([[0, 2], [1, -1], [-1, -1]]), pa.list_(pa.int64()), [[0, 2], [1], []]),
        (np.array([[0.5, -1.0], [2.0, 3.0]]), pa.list_(pa.float64()), [[0.5, -1.0], [2.0, 3.0]]),
    ],
)
def test_labels_are_values_of_their_type(labels: np.ndarray, kind: pa.DataType, expected) -> None:
    column = label_array(labels, kind)
    assert column.type == kind and column.to_pylist() == expected


def test_ids_are_strings() -> None:
    ids = string_array(np.array([b"a", "größe".encode()]))
    assert ids.type == pa.string() and ids.to_pylist() == ["a", "größe"]


def test_lines_of_json_give_the_same_numbers_back() -> None:
    numbers = [0.1, 1 / 3, 1e300, 5e-324, -0.0]
    table = pa.table({"x": numbers, "name": ["ä", 'a"b', "c\nd", "", "e"]})
    lines = to_jsonl(table).decode().splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    assert to_jsonl(table.slice(0, 0)) == b""
