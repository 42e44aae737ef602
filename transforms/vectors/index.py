"""FAISS indexes over the vectors of a training set, one file for each range of its rows."""

from __future__ import annotations

import dataclasses
import functools
import os

import apache_beam as beam
import numpy as np

from transforms.storage import filesystems, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.vectors import faiss_index
from transforms.vectors.config import DEFAULT_TUNING, ProjectionConfig, VectorTuning
from transforms.vectors.files import Shard, WriteVectors, WrittenVectors, count_zero, vectors_of
from transforms.vectors.fit import FitProjection, ProjectionPlan, check_not_empty
from transforms.vectors.projections.projection import Projection


@dataclasses.dataclass(frozen=True)
class IndexWriter:
    """A writer of indexes.

    Attributes:
        directory: the directory of the files.
        kind: one of `faiss_index.KINDS`.
        seed: the seed of the choice of lists.
        memory_bytes: memory of a worker process.
        tuning: the largest index.
    """

    directory: str
    kind: str
    seed: int
    memory_bytes: float
    tuning: VectorTuning = DEFAULT_TUNING

    def rows(self, dimensions: int) -> int:
        """Returns the number of vectors of an index that is built in a worker process's memory:
        building takes the index's size once more.
        """
        most_bytes = min(self.memory_bytes / 2, self.tuning.index_bytes)
        return max(1, int(most_bytes // (4 * dimensions + self.tuning.index_extra_bytes)))

    def write(
        self, shard: Shard, feature_set: FeatureSet, projection: Projection
    ) -> WrittenVectors:
        """Builds and writes the index of a range of rows."""
        vectors = np.empty((shard.rows, projection.dimensions), np.float32)
        start = 0
        for features, part in vectors_of(shard, feature_set, projection):
            vectors[start : start + len(features)] = part
            start += len(features)
        kind = faiss_index.kind_for(self.kind, len(vectors))
        index = faiss_index.build(vectors, kind, self.seed)
        name = f"index-{shard.number:05d}.faiss"
        content = faiss_index.to_bytes(index)
        stored = filesystems.write(self.directory, name, content, len(vectors))
        return WrittenVectors(shard.number, (stored,), len(vectors), count_zero(vectors))


@dataclasses.dataclass
class BuildIndex(beam.PTransform):
    """Builds an index over the vectors of a training set, for `SearchIndex`, and commits it:
    FeatureSet (one) → Manifest (one).

    Attributes:
        features: the training set, the same as the element.
        config: the projection and its normalisation; `formats` and `projection_of` are not used.
        output: the directory of the index.
        kind: one of `faiss_index.KINDS`.
        memory_gb: memory of a machine for building; it decides the size of the index files.
        processes: worker processes that share a machine; None for one per processor.
        overwrite: whether a complete index is replaced.
        tuning: the sizes of vectors and files.
    """

    features: FeatureSet
    config: ProjectionConfig
    output: str
    kind: str = "auto"
    memory_gb: float = 2.0
    processes: int | None = None
    overwrite: bool = False
    tuning: VectorTuning = DEFAULT_TUNING

    @functools.cached_property
    def plan(self) -> ProjectionPlan:
        """The projection to be made.

        Raises:
            InputError: no such vectors can be made.
        """
        return ProjectionPlan.of(self.config, self.features, self.tuning)

    @functools.cached_property
    def draft(self) -> Manifest:
        """The manifest without files and counts; all settings are checked.

        Raises:
            InputError: FAISS is missing, the set holds no example, or no such vectors can be made.
        """
        faiss_index.require()
        check_not_empty(self.features, "train_features")
        settings = {
            **self.plan.settings,
            "train_features": self.features.manifest.fingerprint,
            "model": self.features.manifest.model_fingerprint,
            "kind": self.kind,
            "memory_gb": self.memory_gb,
        }
        return Manifest("index", manifests.fingerprint(settings), settings, (), {})

    def expand(self, sets: beam.PCollection) -> beam.PCollection:
        memory_bytes = self.memory_gb * 1e9 / (self.processes or os.cpu_count() or 1)
        writer = IndexWriter(self.output, self.kind, self.config.seed, memory_bytes, self.tuning)
        projection = sets | "FitProjection" >> FitProjection(self.plan)  # Projection
        return (sets, projection) | "BuildIndex" >> WriteVectors(
            self.output, self.draft, self.overwrite, writer
        )  # Manifest
