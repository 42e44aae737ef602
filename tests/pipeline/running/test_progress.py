"""Progress at a terminal: what the bars show for values of counters."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pipeline.running.progress import Bars, Stage, Watch, short, shown
from transforms.runtime import counters

STAGES = (
    Stage("Read", "bytes-read", 200, "examples", "examples"),
    Stage("Score", "pairs-scored", "pairs-planned", "pairs-scored", "pairs"),
)


def test_a_bar_starts_with_its_first_count_and_ends_at_its_total() -> None:
    bars = Bars(STAGES, Console(file=io.StringIO()))
    read, score = bars.progress.tasks
    bars.update({})
    assert not read.started and not score.started
    bars.update({"bytes-read": 50, "examples": 7, "pairs-planned": 1000})
    assert (read.completed, read.total, read.fields["amount"]) == (50, 200, "7 examples")
    assert read.started and not score.started
    bars.update({"bytes-read": 200, "examples": 9, "pairs-planned": 1000, "pairs-scored": 1000})
    assert read.finished and score.finished and score.total == 1000


def test_a_total_that_is_not_known_yet_is_none() -> None:
    bars = Bars(STAGES[1:], Console(file=io.StringIO()))
    bars.update({"pairs-scored": 3})
    assert bars.progress.tasks[0].total is None


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12345, "12,345"), (1_500_000, "1.5M"), (2.5e9, "2.5G"), (3e12, "3.0T")],
)
def test_large_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text


def metric(name: str, attempted: int, committed: int | None = None) -> Any:
    key = SimpleNamespace(metric=SimpleNamespace(name=name))
    return SimpleNamespace(key=key, attempted=attempted, committed=committed)


def test_counters_of_another_runner_are_summed_over_its_steps() -> None:
    metrics = {"counters": [metric("a", 5), metric("a", 9, committed=2), metric("b", 0)]}
    result = SimpleNamespace(
        metrics=lambda: SimpleNamespace(query=lambda _: metrics),
    )
    watch = Watch()
    watch.follow(result)
    assert watch.counts() == {"a": 7, "b": 0}


def test_a_runner_without_an_answer_ends_no_run() -> None:
    def broken() -> Any:
        raise ConnectionError

    watch = Watch()
    watch.follow(SimpleNamespace(metrics=broken))
    assert watch.counts() == {}


def test_without_a_run_the_counters_are_those_of_this_process() -> None:
    assert Watch().counts() == counters.snapshot()


def test_nothing_is_shown_where_standard_error_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown(STAGES, Watch()):
        pass
    assert capsys.readouterr() == ("", "")
