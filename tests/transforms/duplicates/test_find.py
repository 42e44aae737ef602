"""The search for duplicates: chosen pairs, and groups of a feature set against all pairs."""

from __future__ import annotations

import itertools

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from tests.synthetic import features, write_set
from tests.transforms.duplicates.alike import (
    CHECKPOINTS,
    UNITS,
    borders,
    centred,
    cosines,
    draw,
    signatures_of,
)
from transforms.duplicates import signatures
from transforms.duplicates.config import DuplicateTuning
from transforms.duplicates.find import Candidates, FindDuplicates, spread
from transforms.duplicates.signatures import Pairs
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest


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
        records = rng.integers(0, 12, (10, 2))
        # A pair differs by the same number of bits wherever it is met.
        distances = (records.sum(axis=1) * 7) % 9 - 1
        every.append(Pairs(np.sort(records, axis=1), np.zeros((10, 2), np.int32), distances))
    expected = Candidates.of(every, limit)
    found = Candidates.of(iter(every), limit, waiting_pairs=15)
    assert found.pairs.records.tolist() == expected.pairs.records.tolist()
    assert found.pairs.distances.tolist() == expected.pairs.distances.tolist()
    assert (found.left_out > 0) == (expected.left_out > 0)


@pytest.mark.parametrize("examples", [1, 5_000_000])
def test_large_sets_are_spread_over_parts_of_each_table(examples):
    activations, labels = draw(200)
    directions = centred(activations)
    (one,) = signatures_of(activations, labels, directions, files=1)
    parts = list(spread(one, examples, DuplicateTuning()))
    if examples == 1:
        assert [key for key, _ in parts] == [(-1, 0)]
    else:
        for table in range(signatures.TABLES):
            own = [part for key, part in parts if key[0] == table]
            assert (
                sorted(record for part in own for record in part.records.tolist())
                == one.records.tolist()
                and 1 < len(own) <= 8
            )
            keys = [part.keys(table) for part in own]
            assert all(a.max() < b.min() for a, b in itertools.pairwise(keys))


@pytest.mark.parametrize(
    ("tuning", "all_compared"),
    [
        (DuplicateTuning(), True),
        (DuplicateTuning(rows_at_once=0, rows_per_part=32), True),
        (DuplicateTuning(vector_bytes=0), False),
    ],
    ids=["at once", "by parts", "no memory"],
)
def test_groups_of_a_set_are_those_of_all_pairs(tmp_path, tuning, all_compared):
    n, files = 200, 3
    activations, labels = draw(n)
    rows = np.diff(borders(n, files)).tolist()
    drawn = features(np.ones((n, CHECKPOINTS, 3)), activations, labels=labels)
    directory = write_set(tmp_path, rows, 0, "d", drawn, units=UNITS, checkpoints=("a", "b", "c"))
    manifest = manifests.read(str(directory), FeatureManifest, "features")
    alike = cosines(activations)
    joined = {i: {i} for i in range(n)}
    for i, j in np.argwhere(np.triu(np.ones_like(alike), 1)).tolist():
        equal = activations[i].tobytes() == activations[j].tobytes()
        near = all_compared and alike[i, j] >= 0.97 and labels[i] != labels[j]
        if equal or near:
            union = joined[i] | joined[j]
            joined.update(dict.fromkeys(union, union))
    expected = {frozenset(one) for one in joined.values() if len(one) > 1}
    assert len(expected) > 15

    def check(found):
        ((groups, left_out),) = ((one.groups, one.left_out) for one in found)
        first = borders(n, files)
        members = (first[groups.records >> 32] + (groups.records & 0xFFFFFFFF)).tolist()
        by_number = {
            number: frozenset(itertools.compress(members, groups.numbers == number))
            for number in set(groups.numbers.tolist())
        }
        assert set(by_number.values()) == expected
        assert (left_out == 0) == all_compared

    directions = centred(activations)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        sets = pipeline | "Sets" >> beam.Create([FeatureSet(str(directory), manifest)])
        own = pipeline | "Own" >> beam.Create(signatures_of(activations, labels, directions, files))
        centres = pipeline | "Directions" >> beam.Create([directions])
        found = (sets, own, centres) | FindDuplicates(0.97, tuning)
        assert_that(found, check)
