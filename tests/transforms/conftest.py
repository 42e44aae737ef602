"""Data for the small model of `tests/small.py`, and that model trained on it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.small import D_IN, C, N, compile_model, make_model


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(loc=1, size=(N, D_IN)).astype(np.float32)


@pytest.fixture
def y(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, C, N)


@pytest.fixture
def trained(x: np.ndarray, y: np.ndarray) -> keras.Model:
    model = compile_model(make_model())
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    return model
