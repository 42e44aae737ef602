"""A scoring run that has not been started, and what it would cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline.terminal.amounts import count, scaled, size
from transforms.scoring.costs import Cost, FeatureFiles


@dataclasses.dataclass(frozen=True)
class PlannedSet:
    """A feature set that exists or is planned.

    Attributes:
        examples: its examples.
        files: their files.
        bytes: the size of all files, estimated if they do not exist yet.
    """

    examples: int
    files: int
    bytes: int

    @staticmethod
    def of(files: Sequence[FeatureFiles]) -> PlannedSet:
        """Returns the set in these files."""
        return PlannedSet(
            sum(alike.number * alike.records for alike in files),
            sum(alike.number for alike in files),
            sum(alike.number * alike.bytes for alike in files),
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """A scoring run that has not been started.

    Attributes:
        train, test: the feature sets.
        checkpoints, outputs, units: T, C and D (the trailing 1 of a bias counted).
        k: proponents and opponents of each test example.
        memory_bytes_allowed: the memory budget of one worker process.
        processes: worker processes that share a machine; one per processor of this machine, if
            `processes_known` is false.
        processes_known: whether the options say how many processes share a machine.
        within_memory: whether the predicted peak is within the budget.
        cost: the predicted cost.
    """

    train: PlannedSet
    test: PlannedSet
    checkpoints: int
    outputs: int
    units: int
    k: int
    memory_bytes_allowed: float
    processes: int
    processes_known: bool
    within_memory: bool
    cost: Cost


def table(plan: Plan) -> str:
    """Returns the plan as a table."""
    rows = [*_inputs(plan), *_work(plan.cost), ("memory", _memory(plan)), *_outputs(plan.cost)]
    return "\n".join(f"{name:<19}{text}" for name, text in rows)


def _inputs(plan: Plan) -> Iterator[tuple[str, str]]:
    for name, planned in (("training", plan.train), ("test", plan.test)):
        yield (
            f"{name} examples",
            f"{planned.examples:,}, {size(planned.bytes)} in {count(planned.files, 'file')}",
        )
    yield (
        "features",
        f"{count(plan.checkpoints, 'checkpoint')}, {count(plan.outputs, 'output')}, "
        f"{count(plan.units, 'unit')}",
    )


def _work(cost: Cost) -> Iterator[tuple[str, str]]:
    yield "pairs", f"{cost.pairs:,}"
    yield "arithmetic", f"at most {scaled(cost.flops, 'flop')}, if every pair is multiplied"
    yield (
        "tiles",
        f"{cost.tiles:,}: {count(cost.test_blocks, 'block')} of up to {cost.test_rows:,} test "
        f"examples × {count(cost.train_ranges, 'range')} of up to {cost.train_rows:,} training "
        "examples",
    )
    yield "chunks", f"{cost.chunks:,} of up to {cost.chunk_rows:,} training examples"
    times = "once" if cost.test_blocks == 1 else f"{cost.test_blocks:,} times"
    exact = cost.test_bytes_read_at_most == cost.test_bytes_read
    most = "" if exact else f" (at most {size(cost.test_bytes_read_at_most)})"
    yield (
        "read",
        f"{size(cost.train_bytes_read + cost.test_bytes_read)}: {size(cost.train_bytes_read)} of "
        f"training features, read {times}, and {size(cost.test_bytes_read)}{most} of test features",
    )


def _memory(plan: Plan) -> str:
    verdict = "within" if plan.within_memory else "MORE THAN"
    assumed = "" if plan.processes_known else ", as this one has processors"
    shared = f" ({plan.processes:,} on a machine{assumed})" if plan.processes > 1 else ""
    return (
        f"{size(plan.cost.memory_bytes)} for scoring, {verdict} the "
        f"{size(plan.memory_bytes_allowed)} of a worker process{shared}"
    )


def _outputs(cost: Cost) -> Iterator[tuple[str, str]]:
    yield (
        "shuffled",
        f"at most {count(cost.candidates, 'candidate')}, about {size(cost.shuffled_bytes)}",
    )
    yield (
        "result",
        f"{count(cost.result_rows, 'row')}, at most about {size(cost.result_bytes)} in "
        f"{count(cost.result_files, 'file')}",
    )
