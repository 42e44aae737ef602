"""A planned run in the terminal."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.terminal.planned import Plan, PlannedSet, table
from transforms.scoring.costs import Cost, FeatureFiles

COST = Cost(**{field.name: 1 for field in dataclasses.fields(Cost)})
PLAN = Plan(
    train=PlannedSet(60000, 2, 3_000_000),
    test=PlannedSet(1, 1, 50),
    checkpoints=6,
    outputs=1,
    units=129,
    k=10,
    memory_bytes_allowed=2e9,
    processes=1,
    processes_known=True,
    within_memory=True,
    cost=COST,
)


def rows(plan: Plan) -> dict[str, str]:
    return {line[:19].strip(): line[19:] for line in table(plan).splitlines()}


def test_sets_and_shape_are_named() -> None:
    shown = rows(PLAN)
    assert shown["training examples"] == "60,000, 3.0 MB in 2 files"
    assert shown["test examples"] == "1, 50 B in 1 file"
    assert shown["features"] == "6 checkpoints, 1 output, 129 units"
    assert shown["read"] == "2 B: 1 B of training features, read once, and 1 B of test features"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "within the 2.0 GB of a worker process"),
        ({"within_memory": False}, "MORE THAN the 2.0 GB of a worker process"),
        ({"processes": 4}, "of a worker process (4 on a machine)"),
        (
            {"processes": 4, "processes_known": False},
            "(4 on a machine, as this one has processors)",
        ),
    ],
)
def test_memory_is_judged(changes: dict, text: str) -> None:
    assert rows(dataclasses.replace(PLAN, **changes))["memory"].endswith(text)


def test_several_passes_are_counted() -> None:
    cost = dataclasses.replace(COST, test_blocks=1200, test_bytes_read_at_most=5000)
    shown = rows(dataclasses.replace(PLAN, cost=cost))
    assert "read 1,200 times, and 1 B (at most 5.0 KB) of test features" in shown["read"]


def test_a_set_sums_its_files() -> None:
    files = [FeatureFiles(3, 100, 1000), FeatureFiles(1, 7, 70)]
    assert PlannedSet.of(files) == PlannedSet(307, 4, 3070)
    assert PlannedSet.of([]) == PlannedSet(0, 0, 0)
