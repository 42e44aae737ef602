"""How alike examples are to the model, whatever their labels: the directions of their activations,
and signatures to find alike ones by.

Loss gradients point opposite ways under different labels, so copies whose labels conflict are far
apart in them; activations know nothing of the label. Two examples are as alike as the mean over the
checkpoints of the cosine of `h_t − mean h_t`: without its mean, what all examples share after a
ReLU, any two would be alike.

All pairs are never looked at. A signature has a bit for the side of each of 256 random planes that
a direction is on; two directions at an angle θ differ in about 256 θ / π bits. Sorted by their bits
from each of eight places on, alike ones come near each other, and each is compared with the next
few.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator

import numpy as np

from transforms.duplicates.directions import Directions

_BITS = 256

TABLES = 8

# Each example is compared with so many of those that follow it in a table.
_WINDOW = 32

# Bits by which a pair may exceed what is expected of the least similarity, in standard deviations.
_SLACK = 3.0


@functools.lru_cache(maxsize=1)
def _planes(size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).standard_normal((size, _BITS), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Signatures:
    """What is known of n examples to find alike ones by.

    Attributes:
        places: [n] int64, the feature file times 2³² plus the record in it.
        labels: [n] int32.
        hashes: [n] uint64, of all activations: equal inputs give equal ones.
        bits: [n, 4] uint64.
    """

    places: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    bits: np.ndarray

    @staticmethod
    def of(
        file: int, activations: np.ndarray, labels: np.ndarray, directions: Directions
    ) -> Signatures:
        """The signatures of a feature file's examples; of those without any activation above or
        below 0 nothing is known.
        """
        own = np.ascontiguousarray(activations[:, :, : directions.centres.shape[1]])
        hashes = [
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
            for row in own
        ]
        vectors = directions.vectors(own)
        bits = np.packbits(vectors @ _planes(vectors.shape[1]) > 0, axis=1).view(np.uint64)
        alive = own.any(axis=(1, 2))
        places = (np.int64(file) << 32) + np.arange(len(own))
        return Signatures(
            places[alive],
            labels[alive].astype(np.int32),
            np.array(hashes, np.uint64)[alive],
            bits[alive],
        )

    def take(self, rows: np.ndarray) -> Signatures:
        """Some of them: a mask or indices."""
        return Signatures(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @staticmethod
    def concatenate(parts: Iterable[Signatures]) -> Signatures:
        """All of them (at least one part), in the order of their places."""
        known = list(parts)
        joined = Signatures(
            *(
                np.concatenate([getattr(one, field.name) for one in known])
                for field in dataclasses.fields(Signatures)
            )
        )
        return joined.take(np.argsort(joined.places))

    def keys(self, table: int) -> np.ndarray:
        """What a table is sorted by: [n] uint64, the 64 bits from bit 32 · table on."""
        words = self.bits.view(np.uint32)
        return words[:, table].astype(np.uint64) << np.uint64(32) | words[:, (table + 1) % TABLES]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of examples.

    Attributes:
        places: [m, 2] int64, the smaller one first.
        labels: [m, 2] int32.
        distances: [m] int64, bits that differ, or −1 of equal inputs.
    """

    places: np.ndarray
    labels: np.ndarray
    distances: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        """Some of them: a mask or indices."""
        return Pairs(self.places[rows], self.labels[rows], self.distances[rows])

    @staticmethod
    def merge(parts: Iterable[Pairs]) -> Pairs:
        """All of them, each once, the closest first."""
        known = list(parts)
        joined = Pairs(
            np.concatenate([np.empty((0, 2), np.int64), *(one.places for one in known)]),
            np.concatenate([np.empty((0, 2), np.int32), *(one.labels for one in known)]),
            np.concatenate([np.empty(0, np.int64), *(one.distances for one in known)]),
        )
        _, first = np.unique(joined.places, axis=0, return_index=True)
        joined = joined.take(first)
        return joined.take(np.lexsort((joined.places[:, 1], joined.places[:, 0], joined.distances)))


def most_bits(similarity: float) -> int:
    """By how many bits a pair with at least this similarity hardly ever differs."""
    share = math.acos(max(-1.0, min(1.0, similarity))) / math.pi
    return math.ceil(_BITS * share + _SLACK * math.sqrt(_BITS * share * (1 - share)))


def candidates(found: Signatures, tables: Iterable[int], similarity: float) -> Iterator[Pairs]:
    """Pairs that may be copies of each other, piece by piece, since there may be many, and some of
    them several times: first equal inputs with any labels, each with the next, then alike ones
    whose labels differ.
    """
    by_input = np.lexsort((found.places, found.labels, found.hashes))
    same = found.hashes[by_input[1:]] == found.hashes[by_input[:-1]]
    yield _pairs(found, by_input[:-1][same], by_input[1:][same], np.full(same.sum(), -1))
    # Of equal inputs with one label one stands for all, or they would fill each other's windows.
    again = np.concatenate(
        [[False], same & (found.labels[by_input[1:]] == found.labels[by_input[:-1]])]
    )
    distinct = found.take(np.sort(by_input[~again[: len(by_input)]]))
    limit = most_bits(similarity)
    for table in tables:
        ordered = distinct.take(np.lexsort((distinct.places, distinct.keys(table))))
        for step in range(1, min(_WINDOW + 1, len(ordered.places))):
            (first,) = np.nonzero(
                (ordered.labels[:-step] != ordered.labels[step:])
                & (ordered.hashes[:-step] != ordered.hashes[step:])
                # One word tells most that are too far apart.
                & (_ones(ordered.bits[:-step, 0] ^ ordered.bits[step:, 0]) <= limit)
            )
            distances = _ones(ordered.bits[first] ^ ordered.bits[first + step]).sum(axis=1)
            near = distances <= limit
            yield _pairs(ordered, first[near], first[near] + step, distances[near])


def _pairs(
    found: Signatures, first: np.ndarray, second: np.ndarray, distances: np.ndarray
) -> Pairs:
    rows = np.stack([first, second], axis=1)
    rows = np.where((found.places[rows[:, :1]] > found.places[rows[:, 1:]]), rows[:, ::-1], rows)
    return Pairs(found.places[rows], found.labels[rows], distances.astype(np.int64))


def _ones(words: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set (NumPy's own count is not in its 1.26)."""
    words = words - (words >> np.uint64(1) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + (
        words >> np.uint64(2) & np.uint64(0x3333333333333333)
    )
    words = words + (words >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (words * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.int64)


def similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of n pairs of vectors [n, d]: [n] float64, at most 1."""
    return np.minimum((first.astype(np.float64) * second).sum(axis=1), 1.0)
