"""Vectors as files, range by range of a feature set, committed beside the projection that made
them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import apache_beam as beam
import numpy as np

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.runtime import counters
from transforms.scoring import tiles
from transforms.storage import filesystems, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.storage.tables.tabular import label_type
from transforms.vectors import faiss_index, formats
from transforms.vectors.config import DEFAULT_TUNING, ProjectionConfig, VectorTuning
from transforms.vectors.fit import FitProjection, ProjectionPlan, check_not_empty
from transforms.vectors.projections.projection import Projection

PROJECTION_FILE = "projection.npz"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A range of a feature set's rows: its number among the ranges, its first row, and its records'
    spans.
    """

    number: int
    start: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(map(len, self.spans))


def plan_shards(feature_set: FeatureSet, rows: int) -> Iterator[Shard]:
    """Cuts a feature set into ranges of at most `rows` rows.

    Raises:
        InputError: it is empty.
    """
    total = feature_set.manifest.examples
    if not total:
        raise InputError(
            f"{feature_set.directory} holds no example: there is nothing to make vectors of"
        )
    counters.add("examples-planned", total)
    for number, start in enumerate(range(0, total, rows)):
        spans = tiles.spans(feature_set.counts, start, min(start + rows, total))
        yield Shard(number, start, spans)


def vectors_of(
    shard: Shard, feature_set: FeatureSet, projection: Projection
) -> Iterator[tuple[Features, np.ndarray]]:
    """Yields the features of each span of a range, and their vectors [n, d] float32."""
    for span in shard.spans:
        features = feature_set.read([span])
        yield features, projection.project(features)
        counters.add("examples-projected", len(features))


@dataclasses.dataclass(frozen=True)
class WrittenVectors:
    """The files of a range of rows: the range's number, the files, numbers of vectors and of those
    that are zero.
    """

    number: int
    files: tuple[StoredFile, ...]
    vectors: int
    zero: int


def count_zero(vectors: np.ndarray) -> int:
    """Returns how many vectors [n, d] are zero, because their example's gradient is."""
    return len(vectors) - int(np.count_nonzero(vectors.any(axis=1)))


class ShardWriter(Protocol):
    """A writer of the vectors of one range of rows at a time."""

    def rows(self, dimensions: int) -> int:
        """Returns the number of rows of a range of vectors of so many numbers."""

    def write(
        self, shard: Shard, feature_set: FeatureSet, projection: Projection
    ) -> WrittenVectors:
        """Writes the vectors of a range."""


@dataclasses.dataclass(frozen=True)
class FormatWriter:
    """A writer of vectors in some formats.

    Attributes:
        directory: the directory of the files.
        formats: some of `formats.FORMATS`.
        tuning: the size of a file.
    """

    directory: str
    formats: tuple[str, ...]
    tuning: VectorTuning = DEFAULT_TUNING

    def rows(self, dimensions: int) -> int:
        """Returns the number of vectors of a file, a function of their length alone."""
        by_bytes = self.tuning.file_bytes // (4 * dimensions)
        return max(1, min(self.tuning.file_rows, by_bytes))

    def write(
        self, shard: Shard, feature_set: FeatureSet, projection: Projection
    ) -> WrittenVectors:
        """Writes the vectors of a range in each format."""
        parts = list(vectors_of(shard, feature_set, projection))
        features = Features.concatenate([part for part, _ in parts])
        vectors = np.concatenate([part for _, part in parts])
        label = label_type(feature_set.manifest.task, feature_set.manifest.outputs)
        written = [
            filesystems.write(self.directory, name, content, len(vectors))
            for kind in self.formats
            for name, content in formats.render(
                kind, shard.number, shard.start, features, vectors, label
            )
        ]
        return WrittenVectors(shard.number, tuple(written), len(vectors), count_zero(vectors))


@dataclasses.dataclass
class CommitVectors(beam.PTransform):
    """Writes the projection beside the files of vectors, and commits both: (WrittenVectors,
    Projection) → Manifest (one).

    Attributes:
        directory: the directory of the files.
        draft: the manifest without files and counts.
    """

    directory: str
    draft: Manifest

    def _commit(self, _: None, parts: Sequence[WrittenVectors], projection: Projection) -> Manifest:
        counts = {
            "vectors": sum(part.vectors for part in parts),
            "zero": sum(part.zero for part in parts),
            "dimensions": projection.dimensions,
            "coordinates": projection.kept,
        }
        if counts["vectors"] == counts["zero"]:
            raise InputError(
                f"all {counts['vectors']:,} vectors are zero, since the gradients of all examples "
                "are: nothing can be near to anything; use checkpoints from earlier in the training"
            )
        stored = filesystems.write(self.directory, PROJECTION_FILE, projection.to_bytes(), 0)
        ordered = sorted(parts, key=lambda part: part.number)
        manifest = dataclasses.replace(
            self.draft,
            files=(*(file for part in ordered for file in part.files), stored),
            counts=counts,
        )
        return manifests.commit(self.directory, manifest, overwrite=False)

    def expand(self, parts: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        written, projection = parts  # WrittenVectors, Projection (one)
        return (
            written.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitVectors"
            >> beam.Map(
                self._commit, beam.pvalue.AsList(written), beam.pvalue.AsSingleton(projection)
            )  # Manifest
        )


@dataclasses.dataclass
class WriteVectors(beam.PTransform):
    """Writes the vectors of a feature set, range by range, and commits them: (FeatureSet (one),
    Projection (one)) → Manifest (one).

    Attributes:
        directory: the directory of the files.
        draft: the manifest without files and counts.
        overwrite: whether a complete set is replaced.
        writer: the writer of a range.
    """

    directory: str
    draft: Manifest
    overwrite: bool
    writer: ShardWriter

    def expand(self, sources: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        sets, projections = sources  # FeatureSet (one), Projection (one)
        feature_set, projection = (beam.pvalue.AsSingleton(source) for source in sources)
        writer = self.writer
        ready = (
            sets.pipeline
            | "StartWriting" >> beam.Create([None])
            | "WithdrawOldVectors"
            >> beam.Map(
                lambda _: manifests.withdraw_old(self.directory, self.draft, self.overwrite)
            )  # None
        )
        written = (
            sets
            | "PlanShards"
            >> beam.FlatMap(
                lambda features, by: plan_shards(features, writer.rows(by.dimensions)), projection
            )  # Shard
            | "SpreadShards" >> beam.Reshuffle()  # Shard
            | "WriteShard"
            >> beam.Map(
                lambda shard, features, by, _: writer.write(shard, features, by),
                feature_set,
                projection,
                beam.pvalue.AsList(ready),
            )  # WrittenVectors
        )
        return (written, projections) | "Commit" >> CommitVectors(
            self.directory, self.draft
        )  # Manifest


def read_projection(directory: str, manifest: Manifest) -> Projection:
    """Reads the projection of committed vectors, or of an index.

    Raises:
        InputError: it cannot be read.
    """
    (stored,) = (file for file in manifest.files if file.name == PROJECTION_FILE)
    try:
        return Projection.of_bytes(filesystems.read_verified(directory, stored))
    except ValueError as error:
        raise InputError(
            f"{filesystems.join(directory, PROJECTION_FILE)} cannot be read: {error}; compute the "
            "set again"
        ) from error


def read_other_projection(
    config: ProjectionConfig, features: FeatureSet
) -> tuple[Projection, Manifest]:
    """Reads the projection that `projection_of` names, with the normalisation that is asked for,
    and the manifest beside it.

    Raises:
        InputError: there is none, or it is for features of another model.
    """
    assert config.projection_of
    source = manifests.read_kind(config.projection_of, "projection_of", "vectors", "index")
    if source.settings["model"] != features.manifest.model_fingerprint:
        raise InputError(
            f"`projection_of={config.projection_of!r}` is for features of another model than those "
            f"of {features.directory!r}: extract both with the same checkpoints, layer, loss and "
            "bias"
        )
    projection = read_projection(config.projection_of, source)
    if config.normalize is not None:
        projection = projection.with_unit_length(config.normalize != "none")
    return projection, source


@dataclasses.dataclass
class ExportVectors(beam.PTransform):
    """Writes the vectors of a feature set in the formats of nearest-neighbour libraries, and
    commits them: FeatureSet (one) → Manifest (one).

        config = ProjectionConfig(formats=("parquet",))
        export = ExportVectors(read_feature_set(directory), config, output)
        with beam.Pipeline() as pipeline:
            pipeline | ReadFeatureSet(directory) | export

    Attributes:
        features: the feature set, the same as the element.
        config: the projection, its normalisation and the formats.
        output: the directory of the vectors.
        overwrite: whether a complete set of vectors is replaced.
        tuning: the sizes of vectors and files.
    """

    features: FeatureSet
    config: ProjectionConfig
    output: str
    overwrite: bool = False
    tuning: VectorTuning = DEFAULT_TUNING

    @functools.cached_property
    def plan(self) -> ProjectionPlan | None:
        """The projection to be made, or None with `projection_of`.

        Raises:
            InputError: no such vectors can be made.
        """
        if self.config.projection_of:
            return None
        return ProjectionPlan.of(self.config, self.features, self.tuning)

    @functools.cached_property
    def draft(self) -> Manifest:
        """The manifest without files and counts; all settings are checked.

        Raises:
            InputError: the set holds no example, no such vectors can be made, FAISS is missing, or
                `projection_of` does not fit.
        """
        manifest, config = self.features.manifest, self.config
        check_not_empty(self.features, "features")
        if "faiss" in config.formats:
            faiss_index.require()
        settings: dict[str, Any]
        if self.plan is None:
            projection, source = read_other_projection(config, self.features)
            normalize = "cosine" if projection.scaling.unit_length else "none"
            settings = {"projection_of": source.fingerprint, "normalize": normalize}
        else:
            settings = self.plan.settings
        settings |= {
            "features": manifest.fingerprint,
            "model": manifest.model_fingerprint,
            "formats": sorted(config.formats),
        }
        return Manifest("vectors", manifests.fingerprint(settings), settings, (), {})

    def expand(self, sets: beam.PCollection) -> beam.PCollection:
        if self.plan is None:
            projection = sets | "ReadProjection" >> beam.Map(
                lambda features, config: read_other_projection(config, features)[0], self.config
            )  # Projection
        else:
            projection = sets | "FitProjection" >> FitProjection(self.plan)  # Projection
        writer = FormatWriter(self.output, self.config.formats, self.tuning)
        return (sets, projection) | "WriteVectors" >> WriteVectors(
            self.output, self.draft, self.overwrite, writer
        )  # Manifest
