"""Similarity: vectors, candidates and groups against all pairs by NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.audit import suspicion
from transforms.audit.judge import directions_of
from transforms.audit.suspicion import LeaveOneOut
from transforms.duplicates import find, signatures
from transforms.duplicates.directions import Directions
from transforms.duplicates.find import Candidates, spread
from transforms.duplicates.groups import group
from transforms.duplicates.signatures import Pairs, Signatures

CHECKPOINTS, UNITS, CLASSES = 3, 20, 4


def cosines(activations: np.ndarray) -> np.ndarray:
    """[n, n] by the definition."""
    moved = activations.astype(np.float64) - activations.astype(np.float64).mean(axis=0)
    unit = moved / np.linalg.norm(moved, axis=2, keepdims=True)
    return np.einsum("itd,jtd->ij", unit, unit) / activations.shape[1]


def fitted(activations: np.ndarray, labels: np.ndarray) -> list[LeaveOneOut]:
    return [
        LeaveOneOut.fit(
            suspicion.moments(suspicion.with_one(activations[:, t], False), labels, CLASSES)
        )
        for t in range(activations.shape[1])
    ]


def draw(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations [n, T, D] of which the second half is near, or equals, the first; and labels, of
    which most differ between the halves.
    """
    rng = np.random.default_rng(seed)
    first = np.maximum(rng.normal(size=(n // 2, CHECKPOINTS, UNITS)), 0)
    second = first + rng.normal(size=first.shape) * np.linspace(0, 0.3, n // 2)[:, None, None]
    second[: n // 10] = first[: n // 10]
    labels = rng.integers(0, CLASSES, n)
    return np.concatenate([first, second]).astype(np.float32), labels


def signatures_of(
    activations: np.ndarray, labels: np.ndarray, directions: Directions, files: int = 3
) -> list[Signatures]:
    borders = np.linspace(0, len(labels), files + 1).astype(int)
    return [
        Signatures.of(i, activations[a:b], labels[a:b], directions)
        for i, (a, b) in enumerate(itertools.pairwise(borders))
    ]


def rows_of(places: np.ndarray, n: int, files: int = 3) -> np.ndarray:
    borders = np.linspace(0, n, files + 1).astype(int)
    return borders[places >> 32] + (places & 0xFFFFFFFF)


def test_vectors_multiply_to_the_mean_cosine_about_the_mean():
    activations, labels = draw(60)
    directions = directions_of(fitted(activations, labels))
    for given_activations in (
        activations,
        np.concatenate([activations, np.ones((60, CHECKPOINTS, 1), np.float32)], axis=2),
    ):
        vectors = directions.vectors(given_activations)
        np.testing.assert_allclose(vectors @ vectors.T, cosines(activations), atol=1e-5)
    assert not directions.vectors(directions.centres[None]).any()


def test_candidates_are_all_equal_inputs_and_what_is_alike_under_other_labels():
    activations, labels = draw(2000)
    directions = directions_of(fitted(activations, labels))
    parts = signatures_of(activations, labels, directions)
    found = Pairs.merge(
        signatures.candidates(Signatures.concatenate(parts), range(signatures.TABLES), 0.97)
    )
    expected = cosines(activations)
    pairs = {
        tuple(pair): d
        for pair, d in zip(
            rows_of(found.places, 2000).tolist(), found.distances.tolist(), strict=True
        )
    }
    # The first 200 of the second half are equal to the first 200.
    assert {pair for pair, d in pairs.items() if d < 0} == {(i, 1000 + i) for i in range(200)}
    near = {
        (i, j)
        for i, j in np.argwhere(np.triu(expected >= 0.97, 1)).tolist()
        if labels[i] != labels[j]
    } - {pair for pair, d in pairs.items() if d < 0}
    assert len(near) > 100 and len(near & pairs.keys()) >= 0.98 * len(near)
    assert all(labels[i] != labels[j] for (i, j), d in pairs.items() if d >= 0)
    assert (np.diff(found.distances) >= 0).all()
    # In whatever order files come.
    again = Pairs.merge(
        signatures.candidates(Signatures.concatenate(parts[::-1]), range(signatures.TABLES), 0.97)
    )
    assert again.places.tolist() == found.places.tolist()


def test_of_many_equal_inputs_one_of_each_label_is_compared():
    rng = np.random.default_rng(1)
    base = np.maximum(rng.normal(size=(2, CHECKPOINTS, UNITS)), 0).astype(np.float32)
    base[1] = base[0] + 1e-3
    activations = np.concatenate(
        [
            np.repeat(base, 200, axis=0),
            np.maximum(rng.normal(size=(400, CHECKPOINTS, UNITS)), 0).astype(np.float32),
        ]
    )
    labels = np.concatenate([np.zeros(200, int), np.ones(200, int), rng.integers(0, CLASSES, 400)])
    directions = directions_of(fitted(activations, labels))
    parts = signatures_of(activations, labels, directions)
    found = Pairs.merge(
        signatures.candidates(Signatures.concatenate(parts), range(signatures.TABLES), 0.99)
    )
    equal = found.distances < 0
    assert equal.sum() == 398
    assert rows_of(found.places[~equal], 800).tolist() == [[0, 200]]


def test_what_has_no_activation_is_no_duplicate():
    activations, labels = draw(50)
    directions = directions_of(fitted(activations, labels))
    activations[[3, 5, 7]] = 0
    (found,) = signatures_of(activations, labels, directions, files=1)
    assert found.places.tolist() == [i for i in range(50) if i not in (3, 5, 7)]


def test_bits_that_differ_are_as_many_as_is_told():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(3000, 1, 64))
    second = rng.normal(size=first.shape)
    for wanted in (0.8, 0.95, 0.99):
        other = (
            second
            - np.sum(first * second, axis=2, keepdims=True)
            / np.sum(first**2, axis=2, keepdims=True)
            * first
        )
        scale = np.linalg.norm(first, axis=2, keepdims=True) / np.linalg.norm(
            other, axis=2, keepdims=True
        )
        near = wanted * first + np.sqrt(1 - wanted**2) * scale * other
        directions = Directions(np.zeros((1, 64)))
        one, two = (
            Signatures.of(0, side.astype(np.float32), np.zeros(3000), directions)
            for side in (first, near)
        )
        differing = np.unpackbits((one.bits ^ two.bits).view(np.uint8), axis=1).sum(axis=1)
        assert signatures._ones(one.bits ^ two.bits).sum(axis=1).tolist() == differing.tolist()
        assert (differing <= signatures.most_bits(wanted)).mean() > 0.99
        assert differing.mean() == pytest.approx(256 * np.arccos(wanted) / np.pi, abs=0.5)
    assert signatures.most_bits(1.0) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda pair: pair[0] < pair[1]),
        max_size=20,
    ),
    st.integers(1, 3),
)
def test_groups_are_what_is_connected(pairs, labels):
    places = np.array(pairs, np.int64).reshape(-1, 2) * 1_000_000_007
    label = (places // 1_000_000_007 % labels).astype(np.int32)
    own = np.linspace(0.5, 1, len(pairs))
    found = group(places, label, own)
    expected: list[set[int]] = []
    for a, b in places.tolist():
        touched = [one for one in expected if a in one or b in one]
        expected = [one for one in expected if one not in touched] + [{a, b}.union(*touched)]
    mixed = {min(one): len({m // 1_000_000_007 % labels for m in one}) > 1 for one in expected}
    expected.sort(key=lambda one: (not mixed[min(one)], min(one)))
    assert found.places.tolist() == [m for one in expected for m in sorted(one)]
    assert found.numbers.tolist() == [i for i, one in enumerate(expected) for _ in one]
    assert found.conflicting.tolist() == [mixed[min(one)] for one in expected for _ in one]
    for place, value in zip(found.places.tolist(), found.similarities.tolist(), strict=True):
        assert value == max(
            s for pair, s in zip(places.tolist(), own.tolist(), strict=True) if place in pair
        )


def test_the_closest_pairs_are_compared_and_others_counted():
    pairs = Pairs(
        np.arange(20).reshape(10, 2),
        np.zeros((10, 2), np.int32),
        np.array([-1, 9, 8, 7, 6, 5, 4, 3, -1, 1]),
    )
    halves = [pairs.take(np.arange(0, 6)), pairs.take(np.arange(4, 10))]
    chosen = Candidates.of(halves, 3, left_out=2)
    assert chosen.pairs.distances.tolist() == [-1, -1, 1, 3, 4] and chosen.left_out == 7
    whole = Candidates.of(halves, 100)
    assert whole.left_out == 0 and len(whole.pairs.distances) == 10


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_the_closest_are_the_same_however_many_wait(seed, limit):
    rng = np.random.default_rng(seed)
    every = []
    for _ in range(6):
        places = rng.integers(0, 12, (10, 2))
        # A pair differs by the same number of bits wherever it is met.
        distances = (places.sum(axis=1) * 7) % 9 - 1
        every.append(Pairs(np.sort(places, axis=1), np.zeros((10, 2), np.int32), distances))
    with pytest.MonkeyPatch.context() as patch:
        expected = Candidates.of(every, limit)
        patch.setattr(find, "_WAITING_PAIRS", 15)
        found = Candidates.of(iter(every), limit)
    assert found.pairs.places.tolist() == expected.pairs.places.tolist()
    assert found.pairs.distances.tolist() == expected.pairs.distances.tolist()
    assert (found.left_out > 0) == (expected.left_out > 0)


@pytest.mark.parametrize("examples", [1, 5_000_000])
def test_large_sets_are_spread_over_parts_of_each_table(examples):
    activations, labels = draw(200)
    directions = directions_of(fitted(activations, labels))
    (one,) = signatures_of(activations, labels, directions, files=1)
    parts = list(spread(one, examples))
    if examples == 1:
        assert [key for key, _ in parts] == [(-1, 0)]
    else:
        for table in range(signatures.TABLES):
            own = [part for key, part in parts if key[0] == table]
            assert (
                sorted(place for part in own for place in part.places.tolist())
                == one.places.tolist()
                and 1 < len(own) <= 8
            )
            keys = [part.keys(table) for part in own]
            assert all(a.max() < b.min() for a, b in itertools.pairwise(keys))
