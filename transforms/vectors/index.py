"""FAISS indexes over the vectors of a training set, one file for each range of its rows."""

from __future__ import annotations

import numpy as np

from transforms.storage import filesystems
from transforms.storage.feature_set import FeatureSet
from transforms.vectors import faiss_index
from transforms.vectors.files import Shard, WrittenVectors, count_zero, vectors_of
from transforms.vectors.projections import Projection

# An index file is read whole, and beside its vectors it holds links or lists; building takes as
# much again.
_MOST_BYTES = 1 << 33

_BESIDE_BYTES = 300


def rows_per_index(dimensions: int, memory_bytes: float) -> int:
    """Vectors of one index, so that building it stays within a worker process's memory."""
    return max(1, int(min(memory_bytes / 2, _MOST_BYTES) // (4 * dimensions + _BESIDE_BYTES)))


def build_index(
    shard: Shard, found: FeatureSet, projection: Projection, directory: str, kind: str, seed: int
) -> WrittenVectors:
    """Builds and writes the index of a range of rows."""
    vectors = np.empty((shard.rows, projection.dimensions), np.float32)
    start = 0
    for features, made in vectors_of(shard, found, projection):
        vectors[start : start + len(features)] = made
        start += len(features)
    built = faiss_index.build(vectors, faiss_index.kind_for(kind, len(vectors)), seed)
    name = f"index-{shard.number:05d}.faiss"
    stored = filesystems.write(directory, name, faiss_index.to_bytes(built), len(vectors))
    return WrittenVectors(shard.number, (stored,), len(vectors), count_zero(vectors))
