"""The demo's findings."""

from __future__ import annotations

import numpy as np

from pipeline.demonstration import findings


def test_inspection_counts_what_is_found():
    inspection = findings.Inspection.of(
        np.array([1.0, 5.0, 3.0, 5.0, 0.0]), np.array([True, False, True, True, False])
    )
    assert inspection.order.tolist() == [1, 3, 2, 0, 4]
    assert inspection.found.tolist() == [0, 0, 1, 2, 3, 3]
    assert inspection.first(0.4) == 2
