"""Signatures of activations, and the pairs of examples that they propose as duplicates.

Loss gradients point opposite ways under different labels, so copies with conflicting labels are far
apart in them. Activations know nothing of the label; see `directions` for the similarity.

Comparing all pairs would take too long. A signature has a bit for the side of each of 256 random
hyperplanes on which a direction lies; two directions at an angle θ differ in about 256 θ / π bits
(Charikar 2002). Eight tables sort the signatures by their bits from another start each. Alike
examples come near each other in some table, and each is compared with the next few.

A record number identifies an example of a feature set: the index of its feature file times 2³² plus
the index of its record in that file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator

import numpy as np

from transforms.duplicates.directions import Directions

# Bits of a signature. At a similarity of 0.99, 12 ± 3 of them differ.
_BITS = 256

# One for each 32-bit word of a signature, which is then the start of the bits sorted by.
TABLES = 8

# How many of the next signatures in a table each is compared with.
_WINDOW = 32

# By how many standard deviations a pair's differing bits may exceed the number expected of the
# least similarity: 1 pair in 700 exceeds 3.
_SLACK = 3.0


def record_numbers(file: int, count: int) -> np.ndarray:
    """Returns the record numbers [count] int64 of a feature file."""
    return (np.int64(file) << 32) + np.arange(count)


def files_of(records: np.ndarray) -> np.ndarray:
    """Returns the indices of the feature files of record numbers."""
    return records >> 32


def indices_of(records: np.ndarray) -> np.ndarray:
    """Returns the indices of records in their files, of record numbers."""
    return records & 0xFFFFFFFF


@functools.lru_cache(maxsize=1)
def _planes(size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).standard_normal((size, _BITS), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Signatures:
    """Signatures of n examples.

    Attributes:
        records: [n] int64, record numbers.
        labels: [n] int32.
        hashes: [n] uint64, of all activations: equal inputs have equal hashes.
        bits: [n, 4] uint64.
    """

    records: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    bits: np.ndarray

    @staticmethod
    def of(
        file: int, activations: np.ndarray, labels: np.ndarray, directions: Directions
    ) -> Signatures:
        """Returns the signatures of a feature file, without the examples whose activations are all
        0: nothing is known of them.
        """
        own = np.ascontiguousarray(activations[:, :, : directions.centres.shape[1]])
        hashes = [
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
            for row in own
        ]
        vectors = directions.vectors(own)
        bits = np.packbits(vectors @ _planes(vectors.shape[1]) > 0, axis=1).view(np.uint64)
        alive = own.any(axis=(1, 2))
        return Signatures(
            record_numbers(file, len(own))[alive],
            labels[alive].astype(np.int32),
            np.array(hashes, np.uint64)[alive],
            bits[alive],
        )

    def take(self, rows: np.ndarray) -> Signatures:
        """Returns some of the signatures, by a mask or by indices."""
        return Signatures(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @staticmethod
    def concatenate(parts: Iterable[Signatures]) -> Signatures:
        """Returns the signatures of all parts (at least one), ordered by record number."""
        known = list(parts)
        joined = Signatures(
            *(
                np.concatenate([getattr(part, field.name) for part in known])
                for field in dataclasses.fields(Signatures)
            )
        )
        return joined.take(np.argsort(joined.records))

    def keys(self, table: int) -> np.ndarray:
        """Returns the sort keys of a table: [n] uint64, the 64 bits from bit 32 · table on."""
        words = self.bits.view(np.uint32)
        return words[:, table].astype(np.uint64) << np.uint64(32) | words[:, (table + 1) % TABLES]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of examples.

    Attributes:
        records: [m, 2] int64, record numbers, the smaller first.
        labels: [m, 2] int32.
        distances: [m] int64, the number of differing bits, or −1 for equal inputs.
    """

    records: np.ndarray
    labels: np.ndarray
    distances: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        """Returns some of the pairs, by a mask or by indices."""
        return Pairs(self.records[rows], self.labels[rows], self.distances[rows])

    @staticmethod
    def merge(parts: Iterable[Pairs]) -> Pairs:
        """Returns the pairs of all parts, each once, the closest first."""
        known = list(parts)
        joined = Pairs(
            np.concatenate([np.empty((0, 2), np.int64), *(part.records for part in known)]),
            np.concatenate([np.empty((0, 2), np.int32), *(part.labels for part in known)]),
            np.concatenate([np.empty(0, np.int64), *(part.distances for part in known)]),
        )
        _, first = np.unique(joined.records, axis=0, return_index=True)
        joined = joined.take(first)
        return joined.take(
            np.lexsort((joined.records[:, 1], joined.records[:, 0], joined.distances))
        )


def most_bits(similarity: float) -> int:
    """Returns a number of bits that pairs with at least this similarity hardly ever exceed."""
    share = math.acos(max(-1.0, min(1.0, similarity))) / math.pi
    return math.ceil(_BITS * share + _SLACK * math.sqrt(_BITS * share * (1 - share)))


def candidates(signatures: Signatures, tables: Iterable[int], similarity: float) -> Iterator[Pairs]:
    """Yields the pairs that may be duplicates: first equal inputs with any labels, each with the
    next, then alike ones with different labels.

    Pairs come in parts, since there may be many, and some of them several times.
    """
    by_input = np.lexsort((signatures.records, signatures.labels, signatures.hashes))
    same = signatures.hashes[by_input[1:]] == signatures.hashes[by_input[:-1]]
    yield _pairs(signatures, by_input[:-1][same], by_input[1:][same], np.full(same.sum(), -1))
    # Equal inputs with equal labels would fill each other's windows: the first represents all.
    again = np.concatenate(
        [[False], same & (signatures.labels[by_input[1:]] == signatures.labels[by_input[:-1]])]
    )
    distinct = signatures.take(np.sort(by_input[~again[: len(by_input)]]))
    limit = most_bits(similarity)
    for table in tables:
        ordered = distinct.take(np.lexsort((distinct.records, distinct.keys(table))))
        for step in range(1, min(_WINDOW + 1, len(ordered.records))):
            (first,) = np.nonzero(
                (ordered.labels[:-step] != ordered.labels[step:])
                & (ordered.hashes[:-step] != ordered.hashes[step:])
                # A single word excludes most pairs that are too far apart.
                & (count_bits(ordered.bits[:-step, 0] ^ ordered.bits[step:, 0]) <= limit)
            )
            distances = count_bits(ordered.bits[first] ^ ordered.bits[first + step]).sum(axis=1)
            near = distances <= limit
            yield _pairs(ordered, first[near], first[near] + step, distances[near])


def _pairs(
    signatures: Signatures, first: np.ndarray, second: np.ndarray, distances: np.ndarray
) -> Pairs:
    rows = np.stack([first, second], axis=1)
    records = signatures.records
    rows = np.where((records[rows[:, :1]] > records[rows[:, 1:]]), rows[:, ::-1], rows)
    return Pairs(records[rows], signatures.labels[rows], distances.astype(np.int64))


def count_bits(words: np.ndarray) -> np.ndarray:
    """Returns the number of set bits of each uint64 (NumPy 1.26 has no such function)."""
    words = words - (words >> np.uint64(1) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + (
        words >> np.uint64(2) & np.uint64(0x3333333333333333)
    )
    words = words + (words >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (words * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.int64)
