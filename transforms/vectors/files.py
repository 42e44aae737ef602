"""Vectors as files that nearest-neighbour libraries read, in the order of the feature set, beside
the projection that made them.

| format | files | content |
|---|---|---|
| `npy` | `vectors-SSSSS.npy`, `ids-SSSSS.npy` | float32 [n, d], and the ids as strings [n] |
| `parquet` | `vectors-SSSSS.parquet` | `example_id`, `label`, `vector`, a list of fixed size |
| `tfrecord` | `vectors-SSSSS.tfrecord` | `tf.train.Example` of `example_id`, `label` and `vector`, a float list |
| `faiss` | `vectors-SSSSS.faiss` | a flat inner-product index, whose numbers are rows of the set |
| `vertex` | `vectors-SSSSS.json` | lines for Vertex AI Vector Search: `id`, `embedding`, and the label as a restriction |
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.errors import InputError
from transforms.core.features import NO_LABEL, Features
from transforms.core.shapes import Span
from transforms.runtime import counters
from transforms.scoring import tiles
from transforms.storage import example_wire, filesystems, manifests, tfrecords
from transforms.storage.feature_set import FeatureSet
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.storage.tabular import label_array, label_type, string_array
from transforms.vectors import faiss_index
from transforms.vectors.projections import Projection

FORMATS = ("npy", "parquet", "tfrecord", "faiss", "vertex")
PROJECTION_FILE = "projection.npz"

# A file of vectors has as many as take so much, and no more than so many.
_FILE_BYTES, _FILE_ROWS = 64 << 20, 50_000


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows of a feature set that follow each other: `number` among such ranges, the first row's
    number, and where they are.
    """

    number: int
    start: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(map(len, self.spans))


def plan_shards(found: FeatureSet, rows: int) -> Iterator[Shard]:
    """Cuts a feature set into ranges of at most `rows` rows.

    Raises:
        InputError: it is empty.
    """
    total = found.manifest.examples
    if not total:
        raise InputError(f"{found.directory} holds no example: there is nothing to make vectors of")
    counters.add("examples-planned", total)
    for number, start in enumerate(range(0, total, rows)):
        yield Shard(number, start, tiles.spans(found.counts, start, min(start + rows, total)))


def rows_per_file(dimensions: int) -> int:
    """Vectors of a file, a function of their length alone."""
    return max(1, min(_FILE_ROWS, _FILE_BYTES // (4 * dimensions)))


def vectors_of(
    shard: Shard, found: FeatureSet, projection: Projection
) -> Iterator[tuple[Features, np.ndarray]]:
    """The features of a range's spans, one after the other, and their vectors [n, d] float32."""
    for span in shard.spans:
        features = found.read([span])
        yield features, projection.project(features)
        counters.add("examples-projected", len(features))


def render(
    kind: str, number: int, start: int, features: Features, vectors: np.ndarray, label: pa.DataType
) -> Iterator[tuple[str, bytes]]:
    """The files of one format, (name, content), of vectors [n, d] whose first is row `start`;
    `label` is the type of labels.
    """
    stem = f"vectors-{number:05d}"
    if kind == "npy":
        yield f"{stem}.npy", _npy(vectors)
        yield (
            f"ids-{number:05d}.npy",
            _npy(np.array([one.decode() for one in features.example_ids.tolist()])),
        )
    elif kind == "parquet":
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        columns = [string_array(features.example_ids), label_array(features.labels, label), fixed]
        buffer = io.BytesIO()
        # Floats of gradients do not compress, and dictionaries of them only take time.
        pq.write_table(
            pa.table(columns, ["example_id", "label", "vector"]),
            buffer,
            use_dictionary=False,
            compression="none",
        )
        yield f"{stem}.parquet", buffer.getvalue()
    elif kind == "tfrecord":
        yield (
            f"{stem}.tfrecord",
            tfrecords.join_frames(
                example_wire.encode_vectors(features.example_ids, features.labels, vectors)
            ),
        )
    elif kind == "faiss":
        faiss = faiss_index.require()
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(vectors, np.arange(start, start + len(vectors)))
        yield f"{stem}.faiss", faiss_index.to_bytes(index)
    else:
        yield f"{stem}.json", b"".join(_vertex_lines(features, vectors))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _vertex_lines(features: Features, vectors: np.ndarray) -> Iterator[bytes]:
    whole = np.issubdtype(features.labels.dtype, np.integer)
    for example_id, labels, vector in zip(
        features.example_ids.tolist(), features.labels.tolist(), vectors, strict=True
    ):
        line = {"id": example_id.decode(), "embedding": vector}
        if whole:
            line["restricts"] = [
                {
                    "namespace": "label",
                    "allow": [str(label) for label in labels if label != NO_LABEL],
                }
            ]
        else:
            line["numeric_restricts"] = [
                {"namespace": "label", "value_double": label} for label in labels
            ]
        yield orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


@dataclasses.dataclass(frozen=True)
class WrittenVectors:
    """The files of a range of rows, how many vectors they hold, and how many of them are zero."""

    number: int
    files: tuple[StoredFile, ...]
    vectors: int
    zero: int


def write_vectors(
    shard: Shard, found: FeatureSet, projection: Projection, directory: str, formats: Sequence[str]
) -> WrittenVectors:
    """Writes the vectors of a range of rows in each format."""
    parts = list(vectors_of(shard, found, projection))
    features, vectors = (
        Features.concatenate([one for one, _ in parts]),
        np.concatenate([one for _, one in parts]),
    )
    label = label_type(found.manifest.task, found.manifest.outputs)
    written = [
        filesystems.write(directory, name, content, len(vectors))
        for kind in formats
        for name, content in render(kind, shard.number, shard.start, features, vectors, label)
    ]
    return WrittenVectors(shard.number, tuple(written), len(vectors), count_zero(vectors))


def count_zero(vectors: np.ndarray) -> int:
    """How many vectors [n, d] are zero: those of examples whose gradient is."""
    return len(vectors) - int(np.count_nonzero(vectors.any(axis=1)))


@dataclasses.dataclass
class CommitVectors(beam.PTransform):
    """Writes the projection beside what was written of vectors, and commits both: (WrittenVectors,
    Projection) → Manifest (one).

    Attributes:
        directory: where to.
        draft: the manifest, its files and counts still missing.
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
        committed = dataclasses.replace(
            self.draft,
            files=(*(file for part in ordered for file in part.files), stored),
            counts=counts,
        )
        return manifests.commit(self.directory, committed, overwrite=False)

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
        directory: where to.
        draft: the manifest, its files and counts still missing.
        overwrite: whether a complete set is replaced.
        rows: how many vectors a range has, by the numbers of each.
        write: what writes a range: `write_vectors`, or `indexes.build_index`, but for its first
            three arguments.
    """

    directory: str
    draft: Manifest
    overwrite: bool
    rows: Callable[[int], int]
    write: Callable[[Shard, FeatureSet, Projection], WrittenVectors]

    def expand(self, sources: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        sets, projection = sources  # FeatureSet (one), Projection (one)
        found, made = (beam.pvalue.AsSingleton(one) for one in sources)
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
                lambda one, by: plan_shards(one, self.rows(by.dimensions)), made
            )  # Shard
            | "SpreadShards" >> beam.Reshuffle()  # Shard
            | "WriteShard"
            >> beam.Map(
                lambda shard, one, by, _: self.write(shard, one, by),
                found,
                made,
                beam.pvalue.AsList(ready),
            )  # WrittenVectors
        )
        return (written, projection) | "Commit" >> CommitVectors(
            self.directory, self.draft
        )  # Manifest


def read_projection(directory: str, found: Manifest) -> Projection:
    """The projection that a committed set of vectors was made with.

    Raises:
        InputError: it cannot be read.
    """
    (stored,) = (file for file in found.files if file.name == PROJECTION_FILE)
    try:
        return Projection.of_bytes(filesystems.read_verified(directory, stored))
    except ValueError as error:
        raise InputError(
            f"{filesystems.join(directory, PROJECTION_FILE)} cannot be read: {error}; compute the "
            "set again"
        ) from error
