"""What a person at a terminal sees while a run goes on: a bar for each stage, with counts, rate and
time left.

The numbers are the steps' own counters. The in-process runner blocks and says nothing, so there
they are read from this process; other runners are asked for their metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from apache_beam.metrics.metric import MetricsFilter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from transforms.runtime import counters

_INTERVAL = 0.5  # seconds between looks


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage as it is shown.

    Attributes:
        title: what it does.
        done: the counter whose growth is the progress.
        total: what `done` will reach: a number, or the counter that says it.
        shown: the counter that a person reads.
        unit: what `shown` counts.
    """

    title: str
    done: str
    total: int | str
    shown: str
    unit: str


SCORING = Stage("Score pairs", "pairs-scored", "pairs-planned", "pairs-scored", "pairs")
FITTING = (
    Stage("Sum moments", "examples-summed", "examples-to-fit", "examples-summed", "examples"),
    Stage(
        "Measure energies", "examples-measured", "examples-to-fit", "examples-measured", "examples"
    ),
)
PROJECTING = Stage(
    "Project", "examples-projected", "examples-planned", "examples-projected", "examples"
)
SEARCHING = Stage("Search", "tests-searched", "tests-planned", "tests-searched", "test examples")
AUDITING = (
    Stage("Sum activations", "examples-summed", "examples-planned", "examples-summed", "examples"),
    Stage("Judge labels", "examples-audited", "examples-planned", "examples-audited", "examples"),
)


class Watch:
    """Where the numbers come from: this process, or a run on another runner once there is one."""

    def __init__(self) -> None:
        self._result: Any = None

    def follow(self, result: Any) -> None:
        """Asks this run's metrics from now on."""
        self._result = result

    def counts(self) -> Mapping[str, int]:
        """The counters' present values, by name."""
        if self._result is None:
            return counters.snapshot()
        try:
            queried = self._result.metrics().query(
                MetricsFilter().with_namespace(counters.NAMESPACE)
            )
        except Exception:
            # A runner that has no answer yet, or lost its connection for a moment, must not end the
            # run.
            return {}
        found: dict[str, int] = {}
        for counter in queried["counters"]:
            value = counter.committed if counter.committed is not None else counter.attempted
            found[counter.key.metric.name] = found.get(counter.key.metric.name, 0) + (value or 0)
        return found


def _short(number: float) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:,.0f}"


@contextlib.contextmanager
def shown(stages: Sequence[Stage], watch: Watch) -> Iterator[None]:
    """Shows the stages' progress while the block runs, if standard error is a terminal."""
    if not stages or not sys.stderr.isatty():
        yield
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
    )
    tasks = [bars.add_task(stage.title, total=None, told="", start=False) for stage in stages]
    look = _looker(bars, list(zip(tasks, stages, strict=True)), watch.counts)
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(_INTERVAL):
            look()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    with bars:
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            look()


def _looker(
    bars: Progress, tasks: Sequence[tuple[Any, Stage]], counts: Callable[[], Mapping[str, int]]
) -> Callable[[], None]:
    started: set[Any] = set()

    def look() -> None:
        now = counts()
        for task, stage in tasks:
            done = now.get(stage.done, 0)
            total = stage.total if isinstance(stage.total, int) else now.get(stage.total, 0)
            number = now.get(stage.shown, 0)
            if task not in started and (done or number):
                bars.start_task(task)
                started.add(task)
            if task in started:
                shown_task = bars.tasks[bars.task_ids.index(task)]
                # A stage that is done keeps the rate that it had.
                elapsed = shown_task.finished_time or shown_task.elapsed or 0
                rate = f", {_short(number / elapsed)}/s" if elapsed > 1 else ""
                bars.update(
                    task,
                    completed=done,
                    total=total or None,
                    told=f"{_short(number)} {stage.unit}{rate}",
                )

    return look
