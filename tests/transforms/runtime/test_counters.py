"""Counters: in this process and in Beam, and held back from threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter

from transforms.runtime import counters


@pytest.fixture(autouse=True)
def at_zero() -> Iterator[None]:
    counters.reset()
    yield
    counters.reset()


def test_counts_are_added_up_until_they_are_reset() -> None:
    counters.add("calls")
    counters.add("calls", 2)
    counters.add("numbers", 5)
    assert counters.snapshot() == {"calls": 3, "numbers": 5}
    counters.reset()
    assert counters.snapshot() == {}


def test_a_snapshot_does_not_change() -> None:
    before = counters.snapshot()
    counters.add("calls")
    assert before == {}


def test_a_step_counts_in_beam_too() -> None:
    def count(number: int) -> int:
        counters.add("test-numbers", number)
        return number

    pipeline = beam.Pipeline()
    pipeline | beam.Create([1, 2, 3]) | beam.Map(count)
    result = pipeline.run()
    result.wait_until_finish()
    named = MetricsFilter().with_namespace(counters.NAMESPACE).with_name("test-numbers")
    (metric,) = result.metrics().query(named)["counters"]
    assert metric.committed == 6 == counters.snapshot()["test-numbers"]


def test_no_count_of_threads_is_lost() -> None:
    threads = [
        threading.Thread(target=lambda: [counters.add("calls") for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot() == {"calls": 4000}


def test_a_counted_call_returns_its_counts_and_adds_none() -> None:
    def work(n: int) -> str:
        counters.add("calls")
        counters.add("numbers", n)
        return "done"

    assert counters.call_counted(work, 3) == ("done", Counter(calls=1, numbers=3))
    assert counters.snapshot() == {}


def test_counts_are_added_again_after_a_counted_call_that_failed() -> None:
    with pytest.raises(ZeroDivisionError):
        counters.call_counted(lambda: 1 // 0)
    counters.add("calls")
    assert counters.snapshot() == {"calls": 1}


def test_only_the_calls_own_thread_is_counted() -> None:
    def work() -> None:
        other = threading.Thread(target=counters.add, args=("elsewhere",))
        other.start()
        other.join()

    assert counters.call_counted(work) == (None, Counter())
    assert counters.snapshot() == {"elsewhere": 1}
