"""Formats: each holds the same vectors, ids and labels."""

from __future__ import annotations

import pathlib

import faiss
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.synthetic import write_set
from tests.vector_sets import SMALL, export, features_of, vectors_in
from transforms.vectors.config import ProjectionConfig
from transforms.vectors.formats import FORMATS


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, train: pathlib.Path) -> pathlib.Path:
    """Vectors in all formats, three files of each."""
    directory = tmp_path_factory.mktemp("vectors")
    export(train, directory, ProjectionConfig(dimensions=12, formats=FORMATS), SMALL)
    vectors = vectors_in(directory)
    assert vectors.shape == (280, 12) and vectors.dtype == np.float32
    for suffix in ("npy", "parquet", "tfrecord", "faiss", "json"):
        assert len(list(directory.glob(f"vectors-*.{suffix}"))) == 3
    return directory


def test_npy_has_the_ids_beside_the_vectors(exported: pathlib.Path, train: pathlib.Path):
    ids = np.concatenate([np.load(path) for path in sorted(exported.glob("ids-*.npy"))])
    assert ids.tolist() == [f"train-{i:05d}" for i in range(280)]


def test_parquet(exported: pathlib.Path, train: pathlib.Path):
    table, expected = pq.read_table(sorted(exported.glob("*.parquet"))), features_of(train)
    ids = [example_id.decode() for example_id in expected.example_ids.tolist()]
    assert table["example_id"].to_pylist() == ids
    assert table["label"].to_pylist() == expected.labels[:, 0].tolist()
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    assert np.array_equal(vectors, vectors_in(exported))


def test_tfrecord(exported: pathlib.Path, train: pathlib.Path):
    expected = features_of(train)
    shape = {
        "example_id": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "vector": tf.io.FixedLenFeature([12], tf.float32),
    }
    files = [str(path) for path in sorted(exported.glob("*.tfrecord"))]
    read = [tf.io.parse_single_example(record, shape) for record in tf.data.TFRecordDataset(files)]
    assert np.array_equal([record["vector"].numpy() for record in read], vectors_in(exported))
    assert [record["example_id"].numpy() for record in read] == expected.example_ids.tolist()
    assert [int(record["label"]) for record in read] == expected.labels[:, 0].tolist()


def test_vertex(exported: pathlib.Path, train: pathlib.Path):
    lines = [
        orjson.loads(line)
        for path in sorted(exported.glob("vectors-*.json"))
        for line in path.read_bytes().splitlines()
    ]
    vectors = np.array([line["embedding"] for line in lines], np.float32)
    assert np.array_equal(vectors, vectors_in(exported))
    label = features_of(train).labels[3, 0]
    assert lines[3]["id"] == "train-00003"
    assert lines[3]["restricts"] == [{"namespace": "label", "allow": [str(label)]}]


def test_faiss(exported: pathlib.Path):
    vectors, start = vectors_in(exported), 0
    for path in sorted(exported.glob("vectors-*.faiss")):
        index = faiss.read_index(str(path))
        assert index.search(vectors[start : start + 5], 1)[1].shape == (5, 1)
        ids = faiss.vector_to_array(index.id_map)
        assert ids.tolist() == list(range(start, start + index.ntotal))
        assert np.array_equal(index.reconstruct(start + 7), vectors[start + 7])
        start += index.ntotal
    assert start == 280


@pytest.mark.parametrize(("task", "outputs"), [("multilabel", 3), ("regression", 3)])
def test_labels_of_other_tasks(tmp_path: pathlib.Path, task: str, outputs: int):
    labels = (
        np.array([[0, 2], [1, -1], [2, -1]])
        if task == "multilabel"
        else np.array([[0.5, 1, 2], [1, 1, 1], [0, 0, -1]])
    )
    directory = write_set(tmp_path / "set", [3], 3, "x-", labels=labels, task=task)
    config = ProjectionConfig("exact", formats=("parquet", "vertex", "tfrecord"))
    export(directory, tmp_path / "v", config)
    expected = [[0, 2], [1], [2]] if task == "multilabel" else labels.tolist()
    assert pq.read_table(tmp_path / "v" / "vectors-00000.parquet")["label"].to_pylist() == expected
    line = orjson.loads((tmp_path / "v" / "vectors-00000.json").read_bytes().splitlines()[0])
    if task == "multilabel":
        assert line["restricts"] == [{"namespace": "label", "allow": ["0", "2"]}]
    else:
        assert line["numeric_restricts"] == [
            {"namespace": "label", "value_double": value} for value in (0.5, 1, 2)
        ]
