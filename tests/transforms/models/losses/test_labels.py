"""Labels: reasons why a loss cannot take one, and indices of ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transforms.models.losses.labels import LabelRule, active, invalid_labels


@pytest.mark.parametrize(
    ("rule", "outputs", "labels", "reasons"),
    [
        (
            LabelRule.INDEX,
            10,
            [[3], [12], [-1], [2.5], [np.nan]],
            [
                None,
                "label 12 is outside 0..9",
                "label -1 is outside 0..9",
                "label 2.5 is not a whole number",
                "label nan is not finite",
            ],
        ),
        (
            LabelRule.DISTRIBUTION,
            2,
            [[0.5, 0.5], [1.0005, 0], [0.4, 0.4], [1.5, -0.5], [np.inf, 0]],
            [None, None, "sums to 0.8", "holds -0.5", "inf is not finite"],
        ),
        (
            LabelRule.FRACTIONS,
            2,
            [[1, 1], [0.5, 0], [2, 0], [-1, 1]],
            [None, None, "holds 2, expected numbers within 0..1", "holds -1"],
        ),
        (LabelRule.FINITE, 1, [[-1e30], [np.nan]], [None, "nan is not finite"]),
        (
            LabelRule.SIGNS,
            1,
            [[-1], [0], [0.5]],
            [None, None, "holds 0.5, expected -1, 0 or 1"],
        ),
        (
            LabelRule.SIGNED_ONE_HOT,
            2,
            [[0, 1], [-1, 1], [1, 1]],
            [None, None, "2 ones, expected exactly one"],
        ),
    ],
    ids=lambda value: value.value if isinstance(value, LabelRule) else None,
)
def test_invalid_labels(
    rule: LabelRule, outputs: int, labels: list[list[float]], reasons: list[str | None]
) -> None:
    found = invalid_labels(np.array(labels), rule, outputs)
    for reason, expected in zip(found, reasons, strict=True):
        assert (reason is None) == (expected is None), (reason, expected)
        assert expected is None or expected in str(reason)
    assert invalid_labels(np.array(labels)[:1], rule, outputs) == [None]


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.int8,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6),
        elements=st.integers(0, 1),
    )
)
def test_active_gives_back_the_multi_hot(multi_hot: np.ndarray) -> None:
    indices = active(multi_hot)
    assert indices.shape == (len(multi_hot), max(1, multi_hot.sum(1).max(initial=0)))
    for row, listed in zip(multi_hot, indices, strict=True):
        np.testing.assert_array_equal(listed[listed >= 0], np.flatnonzero(row))
