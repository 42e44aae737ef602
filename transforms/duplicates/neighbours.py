"""The training examples most alike to a few, among those with another label: all records against
the few, in one scan.

Rows of neighbours are a table: `example` (the number of the one that was asked for), `similarity`,
`example_id`, `label`, `source`, `offset`, `content_digest`; of each example the most similar first,
equal ones by id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms.core.shapes import Span
from transforms.duplicates import signatures
from transforms.duplicates.directions import Directions
from transforms.duplicates.find import read_vectors
from transforms.storage import feature_record
from transforms.storage.feature_set import FeatureSet

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
class Asked:
    """The examples whose neighbours are asked for.

    Attributes:
        places: [n] int64, as in `similarity.Signatures`.
        labels: [n] int64, their own.
        wanted: [n] int64, the label of the neighbours; where it is their own, any other.
    """

    places: np.ndarray
    labels: np.ndarray
    wanted: np.ndarray


def _list_places(asked: Asked) -> Iterator[tuple[int, np.ndarray]]:
    for file in np.unique(asked.places >> 32).tolist():
        yield file, asked.places[asked.places >> 32 == file]


def best(table: pa.Table, count: int) -> pa.Table:
    """The first `count` rows of each example, in order."""
    ordered = table.sort_by(
        [("example", "ascending"), ("similarity", "descending"), ("example_id", "ascending")]
    )
    examples = ordered["example"].to_numpy()
    return ordered.filter(
        pa.array(np.arange(len(examples)) - np.searchsorted(examples, examples) < count)
    )


def scan(
    file: int,
    found: FeatureSet,
    directions: Directions,
    asked: Asked,
    vectors: Iterable[tuple[np.ndarray, np.ndarray]],
    count: int,
) -> pa.Table:
    """The best of a feature file."""
    payloads = found.payloads(Span(file, 0, found.manifest.files[file].count))
    features = found.decode(payloads)
    labels = features.labels[:, 0]
    own = directions.vectors(features.activations)
    known = {
        place: row
        for places, rows in vectors
        for place, row in zip(places.tolist(), rows, strict=True)
    }
    queries = np.stack([known[place] for place in asked.places.tolist()])
    products = queries @ own.T
    allowed = np.where(
        (asked.wanted == asked.labels)[:, None],
        labels != asked.labels[:, None],
        labels == asked.wanted[:, None],
    )
    products[~allowed] = -np.inf
    # One more for each, since the order of the products is that of float32.
    kept = min(len(own), 2 * count)
    rows = np.argpartition(-products, kept - 1, axis=1)[:, :kept]
    examples, places = np.nonzero(np.take_along_axis(allowed, rows, axis=1))
    rows = rows[examples, places]
    origins = feature_record.origins([payloads[row] for row in rows.tolist()])
    return best(
        pa.table(
            [
                examples,
                signatures.similarities(queries[examples], own[rows]),
                pa.array(features.example_ids[rows].tolist(), pa.binary()).cast(pa.string()),
                labels[rows],
                [one.source for one in origins],
                [one.offset for one in origins],
                [one.content_digest for one in origins],
            ],
            schema=_SCHEMA,
        ),
        count,
    )


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
    """Finds neighbours with other labels: (FeatureSet (one), Directions (one), Asked (at most one))
    → pa.Table (one).

    Attributes:
        count: how many of each.
    """

    count: int

    def expand(
        self, collections: tuple[beam.PCollection, beam.PCollection, beam.PCollection]
    ) -> beam.PCollection:
        sets, directions, asked = collections
        found, centred = beam.pvalue.AsSingleton(sets), beam.pvalue.AsSingleton(directions)
        vectors = (
            asked
            | "ListAsked" >> beam.FlatMap(_list_places)  # (file, places)
            | "SpreadAsked" >> beam.Reshuffle()  # (file, places)
            | "ReadAsked" >> beam.Map(read_vectors, found, centred)  # (places, vectors)
        )
        return (
            # Not from the set itself: a runner that fused this with what reads the set would wait
            # for the rows before it makes them.
            sets.pipeline
            | "StartScan" >> beam.Create([None])
            | "ListScanned" >> beam.FlatMap(_files, found, beam.pvalue.AsList(asked))  # file
            | "SpreadScanned" >> beam.Reshuffle()  # file
            | "ScanNeighbours"
            >> beam.Map(
                _scan,
                found,
                centred,
                beam.pvalue.AsList(asked),
                beam.pvalue.AsList(vectors),
                self.count,
            )  # pa.Table
            | "MergeNeighbours" >> beam.CombineGlobally(_Best(self.count))  # pa.Table
        )


def _files(_: None, found: FeatureSet, asked: Sequence[Asked]) -> Iterator[int]:
    """All files, or none where nothing is asked for."""
    yield from range(len(found.manifest.files) if asked else 0)


def _scan(
    file: int,
    found: FeatureSet,
    directions: Directions,
    asked: Sequence[Asked],
    vectors: Sequence[tuple[np.ndarray, np.ndarray]],
    count: int,
) -> pa.Table:
    return scan(file, found, directions, asked[0], vectors, count)
