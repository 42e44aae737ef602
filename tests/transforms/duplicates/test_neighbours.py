"""Neighbours with another label against all pairs by NumPy."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

from tests.synthetic import features, write_set
from tests.transforms.duplicates.alike import (
    CHECKPOINTS,
    UNITS,
    borders,
    centred,
    cosines,
    draw,
)
from transforms.duplicates.neighbours import FindNeighbours, Queries
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest


@pytest.mark.parametrize("asked", [True, False])
def test_neighbours_are_the_most_similar_with_the_label_that_is_asked_for(tmp_path, asked):
    n, files, count = 120, 3, 4
    activations, labels = draw(n)
    first = borders(n, files)
    drawn = features(np.ones((n, CHECKPOINTS, 3)), activations, labels=labels)
    directory = write_set(
        tmp_path, np.diff(first).tolist(), 0, "d", drawn, units=UNITS, checkpoints=("a", "b", "c")
    )
    manifest = manifests.read(str(directory), FeatureManifest, "features")
    chosen = np.array([3, 77, 40, 118])
    wanted = np.array([labels[3], 2, labels[40], (labels[118] + 1) % 4])
    file = np.searchsorted(first, chosen, side="right") - 1
    queries = Queries((file << 32) + chosen - first[file], labels[chosen], wanted)
    alike = cosines(activations)

    def check(tables):
        rows = [row for table in tables for row in table.to_pylist()]
        assert bool(rows) is asked
        for i, own in enumerate(chosen.tolist() if asked else []):
            allowed = labels == wanted[i] if wanted[i] != labels[own] else labels != labels[own]
            best = np.sort(alike[own][allowed])[::-1][:count]
            found = [row for row in rows if row["example"] == i]
            assert [row["similarity"] for row in found] == pytest.approx(best, abs=1e-6)
            for row in found:
                j = int(row["example_id"])
                assert allowed[j] and row["label"] == labels[j] and row["offset"] == j
                assert row["similarity"] == pytest.approx(alike[own, j], abs=1e-6)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        sets = pipeline | "Sets" >> beam.Create([FeatureSet(str(directory), manifest)])
        centres = pipeline | "Directions" >> beam.Create([centred(activations)])
        asking = pipeline | "Queries" >> beam.Create([queries] if asked else [])
        assert_that((sets, centres, asking) | FindNeighbours(count), check)
