"""The plan of a scoring run."""

from __future__ import annotations

from pipeline.preparation.planning import planned_files
from pipeline.terminal.planned import PlannedSet
from transforms.core.shapes import Shape


def test_planned_files_hold_all_examples_and_are_as_large_as_files_become() -> None:
    for shape, full in ((Shape(6, 10, 129), 8192), (Shape(3, 1000, 2049), 907)):
        for examples in (1, full, full + 1, 10**9):
            found = planned_files(shape.stored_bytes("float32"), examples)
            assert (
                sum(alike.number * alike.records for alike in found)
                == examples
                == PlannedSet.of(found).examples
            )
            assert found[0].records == min(examples, full)
            assert all(alike.bytes <= (32 << 20) + shape.stored_bytes("float32") for alike in found)
