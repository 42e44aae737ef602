"""The training examples most similar to a few queries, among those with another label: one scan of
all records for all queries.

Neighbours are rows of a table: `example` (the index of the query), `similarity`, `example_id`,
`label`, `source`, `offset`, `content_digest`; for each query the most similar first, equal ones by
id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.core.shapes import Span
from transforms.duplicates.directions import Directions, similarities
from transforms.duplicates.find import read_vectors
from transforms.duplicates.signatures import files_of
from transforms.storage.feature_set import FeatureSet
from transforms.storage.records import feature_record

_SCHEMA = pa.schema(
    [
        ("example", pa.int64()),
        ("similarity", pa.float64()),
        ("example_id", pa.string()),
        ("label", pa.int64()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("content_digest", pa.binary()),
    ]
)


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """The examples whose neighbours are searched.

    Attributes:
        records: [n] int64, record numbers; see `signatures`.
        labels: [n] int64, their labels.
        neighbour_labels: [n] int64, the label of the neighbours; where it equals the query's, the
            neighbours have any other.
    """

    records: np.ndarray
    labels: np.ndarray
    neighbour_labels: np.ndarray


def best(table: pa.Table, count: int) -> pa.Table:
    """Returns the first `count` neighbours of each query, in order."""
    ordered = table.sort_by(
        [("example", "ascending"), ("similarity", "descending"), ("example_id", "ascending")]
    )
    examples = ordered["example"].to_numpy()
    return ordered.filter(
        pa.array(np.arange(len(examples)) - np.searchsorted(examples, examples) < count)
    )


def scan(
    file: int,
    features: FeatureSet,
    directions: Directions,
    queries: Queries,
    vectors: Iterable[tuple[np.ndarray, np.ndarray]],
    count: int,
) -> pa.Table:
    """Returns the best neighbours in a feature file; `vectors` are those of the queries, as
    `read_vectors` returns them.
    """
    payloads = features.payloads(Span(file, 0, features.manifest.files[file].count))
    own = features.decode(payloads)
    labels = own.labels[:, 0]
    own_vectors = directions.vectors(own.activations)
    query_vectors = _in_order(queries, vectors)
    products = query_vectors @ own_vectors.T
    allowed = np.where(
        (queries.neighbour_labels == queries.labels)[:, None],
        labels != queries.labels[:, None],
        labels == queries.neighbour_labels[:, None],
    )
    products[~allowed] = -np.inf
    # Twice as many, since float32 products may order near ties differently than similarities do.
    kept = min(len(own_vectors), 2 * count)
    rows = np.argpartition(-products, kept - 1, axis=1)[:, :kept]
    examples, columns = np.nonzero(np.take_along_axis(allowed, rows, axis=1))
    rows = rows[examples, columns]
    origins = feature_record.origins([payloads[row] for row in rows.tolist()])
    return best(
        pa.table(
            [
                examples,
                similarities(query_vectors[examples], own_vectors[rows]),
                pa.array(own.example_ids[rows].tolist(), pa.binary()).cast(pa.string()),
                labels[rows],
                [origin.source for origin in origins],
                [origin.offset for origin in origins],
                [origin.content_digest for origin in origins],
            ],
            schema=_SCHEMA,
        ),
        count,
    )


def _in_order(queries: Queries, vectors: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The vectors [n, d] of the queries, in their order."""
    by_record = {
        record: row
        for records, rows in vectors
        for record, row in zip(records.tolist(), rows, strict=True)
    }
    return np.stack([by_record[record] for record in queries.records.tolist()])


class _Best(beam.CombineFn):
    """Merges tables of neighbours: pa.Table → pa.Table."""

    def __init__(self, count: int) -> None:
        self._count = count

    def create_accumulator(self) -> pa.Table:
        return _SCHEMA.empty_table()

    def add_input(self, accumulator: pa.Table, table: pa.Table) -> pa.Table:
        return self.merge_accumulators([accumulator, table])

    def merge_accumulators(self, accumulators: Iterable[pa.Table]) -> pa.Table:
        return best(pa.concat_tables(list(accumulators)), self._count)

    def extract_output(self, accumulator: pa.Table) -> pa.Table:
        return accumulator


@dataclasses.dataclass
class FindNeighbours(beam.PTransform):
    """Finds neighbours with other labels: (FeatureSet (one), Directions (one), Queries (at most
    one)) → pa.Table (one).

    Attributes:
        count: number of neighbours of each query.
    """

    count: int

    def _scan(
        self,
        file: int,
        features: FeatureSet,
        directions: Directions,
        queries: Sequence[Queries],
        vectors: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> pa.Table:
        return scan(file, features, directions, queries[0], vectors, self.count)

    def expand(
        self, collections: tuple[beam.PCollection, beam.PCollection, beam.PCollection]
    ) -> beam.PCollection:
        sets, directions, queries = collections
        features, centred = beam.pvalue.AsSingleton(sets), beam.pvalue.AsSingleton(directions)
        asked = beam.pvalue.AsList(queries)
        vectors = (
            queries
            | "ListQueries" >> beam.FlatMap(_list_records)  # (file, record numbers)
            | "SpreadQueries" >> beam.Reshuffle()  # (file, record numbers)
            | "ReadQueries" >> beam.Map(read_vectors, features, centred)
            # (record numbers, vectors)
        )
        return (
            # Not from the set itself: a runner would fuse this with the steps that read the set,
            # and then wait for the rows before making them.
            sets.pipeline
            | "StartScan" >> beam.Create([None])
            | "ListScanned" >> beam.FlatMap(_list_files, features, asked)  # file
            | "SpreadScanned" >> beam.Reshuffle()  # file
            | "ScanNeighbours"
            >> beam.Map(
                self._scan, features, centred, asked, beam.pvalue.AsList(vectors)
            )  # pa.Table
            | "MergeNeighbours" >> beam.CombineGlobally(_Best(self.count))  # pa.Table
        )


def _list_records(queries: Queries) -> Iterator[tuple[int, np.ndarray]]:
    """The queries to read, by feature file: (file, record numbers)."""
    files = files_of(queries.records)
    for file in np.unique(files).tolist():
        yield file, queries.records[files == file]


def _list_files(_: None, features: FeatureSet, queries: Sequence[Queries]) -> Iterator[int]:
    """All feature files, or none without queries."""
    yield from range(len(features.manifest.files) if queries else 0)
