"""Gradients of whole examples, read from feature sets whose records are positions."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from tests.synthetic import write_set
from tests.transforms.scoring.test_gradients import positions, ragged, whole
from transforms.core.shapes import Span
from transforms.influence.sums import SumScoring, read_gradients
from transforms.scoring.gradients import Gradients
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest

RATES = (0.1, 0.02)


@pytest.mark.parametrize("piece_bytes", [1, 3000, 16 << 20])
def test_records_are_added_up_in_pieces_that_end_within_an_example_too(
    tmp_path: pathlib.Path, piece_bytes: int
) -> None:
    rng = np.random.default_rng(8)
    sizes = ragged(rng, 23, 7)
    records = positions(rng, sizes, 2, 3, 6)
    counts = [sum(sizes[:9]), sum(sizes[9:])]
    directory = str(write_set(tmp_path / "set", counts, 0, "", records, per_token=True))
    stored = FeatureSet(directory, manifests.read(directory, FeatureManifest, "features"))
    spans = [Span(file, 0, count) for file, count in enumerate(counts)]
    expected = whole(records, RATES)
    for rows in (23, 5):
        parts = list(read_gradients(stored, spans, RATES, rows, piece_bytes))
        assert all(len(part) <= rows for part in parts)
        for field in dataclasses.fields(Gradients):
            joined = np.concatenate([getattr(part, field.name) for part in parts])
            assert joined.tobytes() == getattr(expected, field.name).tobytes(), field.name
    assert (
        np.concatenate([SumScoring().count_positions(file, stored) for file in range(2)]).tolist()
        == sizes
    )
