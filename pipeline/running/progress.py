"""The progress of a run at a terminal: a bar for each stage, with counts, rate and time left.

The numbers are the steps' own counters. The in-process runner blocks and reports nothing, so its
counters are read from this process; other runners are asked for their metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apache_beam.metrics.metric import MetricsFilter
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn

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
        noun: what `shown` counts.
    """

    title: str
    done: str
    total: int | str
    shown: str
    noun: str


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
    """Counters of this process, or of a run on another runner once there is such a run."""

    def __init__(self) -> None:
        self._result: Any = None

    def follow(self, result: Any) -> None:
        """Reads this run's metrics from now on."""
        self._result = result

    def counts(self) -> Mapping[str, int]:
        """Returns the counters' present values, by name."""
        if self._result is None:
            return counters.snapshot()
        try:
            metrics = self._result.metrics().query(
                MetricsFilter().with_namespace(counters.NAMESPACE)
            )
        except Exception:
            # A runner that has no answer yet, or lost its connection for a moment, must not end the
            # run.
            return {}
        totals: dict[str, int] = {}
        for counter in metrics["counters"]:
            value = counter.committed if counter.committed is not None else counter.attempted
            name = counter.key.metric.name
            totals[name] = totals.get(name, 0) + (value or 0)
        return totals


def short(number: float) -> str:
    """Returns a number in at most a few characters: `1,234`, `5.6M`."""
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
    bars = Bars(stages, Console(stderr=True))
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(_INTERVAL):
            bars.update(watch.counts())

    thread = threading.Thread(target=run, name="progress", daemon=True)
    with bars.progress:
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            bars.update(watch.counts())


class Bars:
    """A bar for each stage, which begins to run with its first count.

    Attributes:
        progress: the bars, as rich shows them.
    """

    def __init__(self, stages: Sequence[Stage], console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._tasks = [
            (self.progress.add_task(stage.title, total=None, amount="", start=False), stage)
            for stage in stages
        ]

    def update(self, counts: Mapping[str, int]) -> None:
        """Shows these values of the counters."""
        for task_id, stage in self._tasks:
            self._update(self.progress.tasks[self.progress.task_ids.index(task_id)], stage, counts)

    def _update(self, task: Task, stage: Stage, counts: Mapping[str, int]) -> None:
        done, number = counts.get(stage.done, 0), counts.get(stage.shown, 0)
        total = stage.total if isinstance(stage.total, int) else counts.get(stage.total, 0)
        if not task.started and (done or number):
            self.progress.start_task(task.id)
        if task.started:
            # A stage that is done keeps the rate that it had.
            elapsed = task.finished_time or task.elapsed or 0
            rate = f", {short(number / elapsed)}/s" if elapsed > 1 else ""
            self.progress.update(
                task.id,
                completed=done,
                total=total or None,
                amount=f"{short(number)} {stage.noun}{rate}",
            )
