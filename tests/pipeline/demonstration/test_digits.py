"""The demo's workload: digits, and labels made wrong on purpose."""

from __future__ import annotations

import numpy as np

from pipeline.demonstration import digits


def test_mislabelling():
    truth = np.repeat(np.arange(10), 900)
    labels = digits.mislabel(truth, np.random.default_rng(0))
    wrong = labels != truth
    assert wrong.sum() == 900
    assert set(np.unique(labels)) == set(range(10))
    shifts = np.bincount((labels - truth)[wrong] % 10, minlength=10)
    assert shifts[0] == 0 and shifts[1:].min() > 60 and shifts[1:].max() < 140
    assert (labels == digits.mislabel(truth, np.random.default_rng(0))).all()


def test_digits_are_the_same_every_time():
    again = digits.load()
    for one, other in zip(digits.load(), again, strict=True):
        assert one.ids == other.ids
        assert (
            (one.images == other.images).all()
            and (one.labels == other.labels).all()
            and (one.truth == other.truth).all()
        )
    train, test = again
    assert (len(train), len(test)) == (1397, 400)
    assert train.planted.sum() == 140 and test.planted.sum() == 0
    assert train.images.min() == 0 and train.images.max() == 1
