"""Fitting over files: what is planned, refused, and that groups of files change no projection."""

from __future__ import annotations

import pathlib

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that

from tests.synthetic import write_set
from tests.vector_sets import RATES, feature_set, features_of
from transforms.core.errors import InputError
from transforms.vectors.config import ProjectionConfig, VectorTuning
from transforms.vectors.fit import (
    FitProjection,
    ProjectionPlan,
    check_not_empty,
    plan_groups,
    without_fitting,
)
from transforms.vectors.projections import methods
from transforms.vectors.projections.moments import Measurements


def test_a_plan_takes_the_settings_and_the_learning_rates_of_the_set(train: pathlib.Path):
    plan = ProjectionPlan.of(ProjectionConfig(seed=3, normalize="relatif"), feature_set(train))
    assert plan == ProjectionPlan("auto", 36, 3, RATES, "relatif")
    assert plan.scaling.unit_length and plan.scaling.learning_rates == RATES
    given = ProjectionPlan.of(ProjectionConfig(learning_rates=(1.0, 2.0)), feature_set(train))
    assert given.learning_rates == (1.0, 2.0) and not given.scaling.unit_length


@pytest.mark.parametrize(
    ("config", "tuning", "expected"),
    [
        (ProjectionConfig(), VectorTuning(dimensions=10), 10),
        (ProjectionConfig(), VectorTuning(), 36),
        (ProjectionConfig(dimensions=12), VectorTuning(dimensions=10), 12),
        (ProjectionConfig("exact", dimensions=12), VectorTuning(dimensions=10), 36),
    ],
)
def test_dimensions_are_those_asked_for_or_as_many_as_there_are(
    train: pathlib.Path, config: ProjectionConfig, tuning: VectorTuning, expected: int
):
    assert ProjectionPlan.of(config, feature_set(train), tuning).dimensions == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProjectionConfig(dimensions=37), r"`dimensions=37`: 37 numbers are more than the 36"),
        (ProjectionConfig("random", 1), r"`dimensions=1`: .* one for each of the 2 checkpoints"),
        (ProjectionConfig(learning_rates=(0.1,)), r"`learning_rates` has 1 numbers"),
    ],
)
def test_vectors_that_cannot_be_made_are_refused(
    train: pathlib.Path, config: ProjectionConfig, message: str
):
    with pytest.raises(InputError, match=message):
        ProjectionPlan.of(config, feature_set(train))


def test_large_vectors_have_to_be_allowed(train: pathlib.Path):
    tuning = VectorTuning(largest=30)
    with pytest.raises(InputError, match=r"vectors of 36 numbers take .* `allow_large_vectors`"):
        ProjectionPlan.of(ProjectionConfig("exact"), feature_set(train), tuning)
    allowed = ProjectionConfig("exact", allow_large_vectors=True)
    assert ProjectionPlan.of(allowed, feature_set(train), tuning).dimensions == 36


def test_an_empty_set_is_refused(tmp_path: pathlib.Path, train: pathlib.Path):
    empty = feature_set(write_set(tmp_path / "set", [0], 5, "empty-"))
    with pytest.raises(InputError, match=r"`train_features=.*` holds no example"):
        check_not_empty(empty, "train_features")
    with pytest.raises(InputError, match="holds no example"):
        list(plan_groups(empty))
    check_not_empty(feature_set(train), "train_features")


def test_groups_cover_all_files_once(train: pathlib.Path):
    groups = list(plan_groups(feature_set(train)))
    assert [(group.first, group.stop, group.start) for group in groups] == [
        (0, 1, 0),
        (1, 2, 150),
        (2, 3, 150),
    ]


@pytest.mark.parametrize("method", methods.METHODS)
def test_files_are_fitted_as_features_in_memory_are(train: pathlib.Path, method: str):
    config = ProjectionConfig(method, 12, normalize="cosine")
    features = feature_set(train)
    plan = ProjectionPlan.of(config, features)
    if method in methods.FITTED:
        measurements = Measurements.of(features_of(train), plan.scaling)
        expected = methods.fit(method, plan.scaling, measurements, 12, 0)
    else:
        expected = without_fitting(plan, features)

    def matches(projections) -> None:
        (projection,) = projections
        assert projection.dimensions == expected.dimensions
        # Sums over files round otherwise than one over all records.
        for bases, others in (
            (projection.loss_grad_bases, expected.loss_grad_bases),
            (projection.coordinates, expected.coordinates),
        ):
            for basis, other in zip(bases, others, strict=True):
                assert (basis is None) == (other is None)
                assert basis is None or basis == pytest.approx(other, abs=1e-3)
        if method not in methods.FITTED:
            assert projection.to_bytes() == expected.to_bytes()

    with beam.Pipeline() as pipeline:
        made = pipeline | beam.Create([features]) | FitProjection(plan)
        assert_that(made, matches)
