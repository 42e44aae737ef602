"""Weights of positions in the loss of an example."""

from __future__ import annotations

import numpy as np
import pytest

from transforms.models.losses.positions import position_weights


@pytest.mark.parametrize("mean", [False, True])
def test_weights(mean: bool) -> None:
    counted = np.array([[[True], [False], [True]], [[False], [False], [False]]])
    expected = np.array([[[1.0], [0.0], [1.0]], [[0.0]] * 3]) / (2 if mean else 1)
    assert position_weights(counted, mean).tolist() == expected.tolist()
