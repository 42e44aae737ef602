"""Projections of small random features, for tests."""

from __future__ import annotations

import numpy as np

from transforms.core.features import Features
from transforms.vectors.projections import methods
from transforms.vectors.projections.moments import Measurements
from transforms.vectors.projections.projection import Projection, Scaling

RATES = (0.5, 0.125, 0.03)


def scaling(unit: bool = False) -> Scaling:
    return Scaling(RATES, unit)


def fitted(
    method: str, train: Features, dimensions: int, seed: int = 0, unit: bool = False
) -> Projection:
    """A projection of any method."""
    made, outputs, units = scaling(unit), train.loss_grads.shape[2], train.activations.shape[2]
    if method == "exact":
        return methods.exact(made, outputs, units)
    if method not in methods.FITTED:
        return (methods.random if method == "random" else methods.sketch)(
            made, outputs, units, dimensions, seed
        )
    return methods.fit(method, made, Measurements.of(train, made), dimensions, seed)


def products(projection: Projection, test: Features, train: Features) -> np.ndarray:
    return projection.project(test).astype(np.float64) @ projection.project(train).T
