"""Calls in threads, whose results are handed on in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from transforms.core.errors import InputError
from transforms.runtime import counters
from transforms.runtime.threads import Threads


@pytest.fixture
def two() -> Iterator[Threads]:
    threads = Threads(2, 2, "two")
    yield threads
    threads.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("two")]


def test_results_come_in_order_and_only_so_many_calls_wait(two: Threads) -> None:
    may_end = [threading.Event() for _ in range(5)]

    def work(i: int) -> int:
        may_end[i].wait()
        return i

    may_end[1].set()
    # The second is there first, and is not handed on before the first.
    assert [list(two.call(work, i)) for i in range(2)] == [[], []]
    may_end[0].set()
    may_end[2].set()
    assert [*two.call(work, 2), *two.rest()] == [0, 1, 2]
    may_end[3].set()
    may_end[4].set()
    seen = [result for i in (3, 4) for result in two.call(work, i)]
    assert [*seen, *two.rest()] == [3, 4]


def test_a_caller_waits_for_the_oldest_where_too_many_are_under_way(two: Threads) -> None:
    may_end = threading.Event()

    def work() -> str:
        may_end.wait()
        return "done"

    assert not list(two.call(work)) and not list(two.call(work))
    threading.Timer(0.05, may_end.set).start()
    assert next(iter(two.call(work))) == "done"
    assert may_end.is_set()


def test_an_exception_is_raised_after_what_came_before_it(two: Threads) -> None:
    def work(i: int) -> int:
        if i == 2:
            raise InputError("the third is missing")
        return i

    seen = []
    with pytest.raises(InputError, match="the third is missing"):
        for i in range(4):
            seen += two.call(work, i)
        seen += two.rest()
    assert seen == [0, 1]


def test_the_counts_of_a_call_are_added_with_its_result(two: Threads) -> None:
    counters.reset()
    go = threading.Barrier(2)

    def work() -> None:
        go.wait()
        counters.add("calls")
        counters.add("numbers", 3)

    results = [*two.call(work), *two.call(work)]
    assert counters.snapshot() in ({}, {"calls": 1, "numbers": 3}, {"calls": 2, "numbers": 6})
    assert [*results, *two.rest()] == [None, None]
    assert counters.snapshot() == {"calls": 2, "numbers": 6}
