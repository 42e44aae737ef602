"""FAISS indexes: their kinds, their answers, and what FAISS cannot read."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from transforms.core.errors import InputError
from transforms.vectors import faiss_index


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
    nearest = faiss_index.nearest(built, queries, 10, nprobe=100, ef_search=300)
    products = queries @ vectors.T
    for sign in (0, 1):
        expected = np.argsort(-products if sign == 0 else products, axis=1)[:, :10]
        assert (
            np.mean(
                [
                    len(np.intersect1d(*pair)) / 10
                    for pair in zip(nearest[sign], expected, strict=True)
                ]
            )
            > 0.99
        )
    assert faiss_index.nearest(built, queries, 1000).shape == (2, 20, 300)


def test_an_ivf_index_is_the_same_for_equal_vectors_and_seeds():
    vectors = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    built = [faiss_index.to_bytes(faiss_index.build(vectors, "ivf", seed)) for seed in (1, 1, 2)]
    assert built[0] == built[1] != built[2]


def test_bytes_that_faiss_cannot_read_are_refused():
    data = faiss_index.to_bytes(faiss_index.build(np.eye(4, dtype=np.float32), "flat", 0))
    with pytest.raises(InputError, match="cannot read the index"):
        faiss_index.of_bytes(data[:20])


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    assert faiss_index.require().__name__ == "faiss"
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'tracin-beam\[neighbours\]'"):
        faiss_index.require()
