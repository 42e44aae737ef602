"""Vectors and indexes in the terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipeline.terminal.vectors import index, vectors

FILES = (SimpleNamespace(size=1000), SimpleNamespace(size=500))
MANIFEST: Any = SimpleNamespace(
    files=FILES, settings={"formats": ["npy", "faiss"]}, counts={"vectors": 1200, "zero": 0}
)
PROJECTION: Any = SimpleNamespace(dimensions=64, kept=64, sketch=None, method="principal")


def test_vectors_are_described() -> None:
    assert vectors("out", MANIFEST, PROJECTION) == (
        "vectors: 1,200 vectors of 64 numbers (principal: coordinates), 1.5 KB (npy, faiss) at out"
    )


def test_an_index_is_described() -> None:
    manifest: Any = SimpleNamespace(files=FILES, counts={"vectors": 1, "zero": 1})
    projection: Any = SimpleNamespace(
        dimensions=64, kept=32, sketch=SimpleNamespace(size=32), method="auto"
    )
    assert index("out", manifest, projection) == (
        "index: 1 vector, 1 of them zero of 64 numbers (auto: 32 coordinates and a sketch of 32), "
        "1.5 KB in 1 index file at out"
    )
