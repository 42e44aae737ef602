"""Indexes of ranges of rows: their sizes, files and content."""

from __future__ import annotations

import pathlib

import faiss
import numpy as np
import pytest

from tests.synthetic import write_set
from tests.vector_sets import SMALL, build_index, feature_set, features_of
from transforms.core.errors import InputError
from transforms.vectors.config import ProjectionConfig, VectorTuning
from transforms.vectors.files import read_projection
from transforms.vectors.index import BuildIndex, IndexWriter


def test_an_index_fits_into_half_of_the_memory_and_into_a_file():
    tuning = VectorTuning(index_bytes=10_000, index_extra_bytes=100)
    assert IndexWriter("out", "flat", 0, 1e9, tuning).rows(25) == 50
    assert IndexWriter("out", "flat", 0, 4000, tuning).rows(25) == 10
    assert IndexWriter("out", "flat", 0, 1, tuning).rows(25) == 1


def test_files_hold_the_vectors_of_all_rows(tmp_path: pathlib.Path, train: pathlib.Path):
    manifest = build_index(train, tmp_path, ProjectionConfig("exact"), "flat")
    files = [file for file in manifest.files if file.name.startswith("index-")]
    assert [file.count for file in files] == [100, 100, 80]
    vectors = np.concatenate(
        [
            index.reconstruct_n(0, index.ntotal)
            for index in (faiss.read_index(str(tmp_path / file.name)) for file in files)
        ]
    )
    projection = read_projection(str(tmp_path), manifest)
    assert np.array_equal(vectors, projection.project(features_of(train)))
    assert manifest.counts["vectors"] == 280 and manifest.counts["zero"] == 0


def test_the_draft_has_the_settings_of_the_index(train: pathlib.Path):
    config = ProjectionConfig(dimensions=8, normalize="cosine")
    draft = BuildIndex(feature_set(train), config, "out", "hnsw", 3.0, tuning=SMALL).draft
    assert draft.kind == "index"
    assert draft.settings == {
        "train_features": "train-",
        "model": "model",
        "kind": "hnsw",
        "memory_gb": 3.0,
        "learning_rates": [0.1, 0.02],
        "normalize": "cosine",
        "projection": "auto",
        "dimensions": 8,
        "seed": 0,
    }


def test_an_empty_set_is_refused(tmp_path: pathlib.Path):
    empty = feature_set(write_set(tmp_path / "set", [0], 5, "empty-"))
    with pytest.raises(InputError, match=r"`train_features=.*` holds no example"):
        _ = BuildIndex(empty, ProjectionConfig(), "out").draft
