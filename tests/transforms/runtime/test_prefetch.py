"""Working ahead in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from transforms.core.errors import InputError
from transforms.runtime.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_prefetch_keeps_the_order_and_leaves_no_thread(depth: int) -> None:
    assert list(prefetch(iter(range(30)), depth)) == list(range(30))
    assert threads() == []


def test_prefetch_passes_none_and_falsehood_through() -> None:
    assert list(prefetch(iter([None, 0, False, None]))) == [None, 0, False, None]


def test_prefetch_hands_on_an_exception_after_what_came_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise InputError("the third is missing")

    seen = []
    with pytest.raises(InputError, match="the third is missing"):
        for element in prefetch(failing()):
            seen.append(element)
    assert seen == [1, 2]
    assert threads() == []


def test_closing_prefetch_early_does_not_hang_and_leaves_no_thread() -> None:
    produced = []

    def endless() -> Iterator[int]:
        while True:
            produced.append(0)
            yield len(produced)

    ahead = prefetch(endless(), 2)
    assert next(ahead) == 1
    ahead.close()
    assert threads() == []
    # One handed over, two waiting, one that found no room.
    assert len(produced) <= 4


def test_prefetch_works_while_the_reader_rests() -> None:
    ready = threading.Event()

    def elements() -> Iterator[int]:
        yield 1
        yield 2
        ready.set()
        yield 3

    ahead = prefetch(elements(), 2)
    assert next(ahead) == 1
    assert ready.wait(5)
    assert list(ahead) == [2, 3]
