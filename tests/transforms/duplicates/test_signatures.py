"""Signatures and the pairs that they propose, against all pairs by NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.transforms.duplicates.alike import (
    CHECKPOINTS,
    CLASSES,
    UNITS,
    centred,
    cosines,
    draw,
    rows_of,
    signatures_of,
)
from transforms.duplicates import signatures
from transforms.duplicates.directions import Directions
from transforms.duplicates.signatures import Pairs, Signatures


def test_candidates_are_all_equal_inputs_and_what_is_alike_under_other_labels():
    activations, labels = draw(2000)
    directions = centred(activations)
    parts = signatures_of(activations, labels, directions)
    found = Pairs.merge(
        signatures.candidates(Signatures.concatenate(parts), range(signatures.TABLES), 0.97)
    )
    expected = cosines(activations)
    pairs = {
        tuple(pair): d
        for pair, d in zip(
            rows_of(found.records, 2000).tolist(), found.distances.tolist(), strict=True
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
    assert again.records.tolist() == found.records.tolist()


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
    directions = centred(activations)
    parts = signatures_of(activations, labels, directions)
    found = Pairs.merge(
        signatures.candidates(Signatures.concatenate(parts), range(signatures.TABLES), 0.99)
    )
    equal = found.distances < 0
    assert equal.sum() == 398
    assert rows_of(found.records[~equal], 800).tolist() == [[0, 200]]


def test_what_has_no_activation_is_no_duplicate():
    activations, labels = draw(50)
    directions = centred(activations)
    activations[[3, 5, 7]] = 0
    (found,) = signatures_of(activations, labels, directions, files=1)
    assert found.records.tolist() == [i for i in range(50) if i not in (3, 5, 7)]


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
        assert signatures.count_bits(one.bits ^ two.bits).sum(axis=1).tolist() == differing.tolist()
        assert (differing <= signatures.most_bits(wanted)).mean() > 0.99
        assert differing.mean() == pytest.approx(256 * np.arccos(wanted) / np.pi, abs=0.5)
    assert signatures.most_bits(1.0) == 0
