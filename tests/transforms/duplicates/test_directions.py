"""Directions: vectors whose products are the similarities of the definition."""

from __future__ import annotations

import numpy as np

from tests.transforms.duplicates.alike import CHECKPOINTS, centred, cosines, draw
from transforms.duplicates.directions import similarities


def test_vectors_multiply_to_the_mean_cosine_about_the_mean():
    activations, _ = draw(60)
    directions = centred(activations)
    for given_activations in (
        activations,
        np.concatenate([activations, np.ones((60, CHECKPOINTS, 1), np.float32)], axis=2),
    ):
        vectors = directions.vectors(given_activations)
        np.testing.assert_allclose(vectors @ vectors.T, cosines(activations), atol=1e-5)
    assert not directions.vectors(directions.centres[None]).any()


def test_similarities_are_those_of_the_definition_and_at_most_1():
    activations, _ = draw(60)
    vectors = centred(activations).vectors(activations)
    found = similarities(np.repeat(vectors, 60, axis=0), np.tile(vectors, (60, 1)))
    np.testing.assert_allclose(found.reshape(60, 60), cosines(activations), atol=1e-6)
    assert found.max() == 1
