"""Feature files end where they are full, and between examples."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.conftest import (
    Outcome,
)
from transforms.examples.format import InputFile
from transforms.extraction.feature_files.part import FileLimits, Part

Run = Callable[..., Outcome]


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("largest", [1, 120, 10_000])
def test_parts_are_cut_where_they_are_full_and_never_inside_an_example(
    tmp_path: pathlib.Path, most: int, largest: int
) -> None:
    limits = FileLimits(most, largest)
    file = InputFile(0, "in", "in", 1)
    sizes, offsets = [20, 5, 60, 0, 31, 31, 8, 90, 2], [0, 1, 1, 1, 4, 5, 5, 7, 9]

    def parts(step: int) -> list[list[tuple[int, int]]]:
        """The places and sizes of records in each part, of records that come `step` examples at a
        time.
        """
        part, found = Part(file, str(tmp_path), limits), [[]]
        examples = sorted(set(offsets))
        for start in range(0, len(examples), step):
            rows = [
                i for i, offset in enumerate(offsets) if offset in examples[start : start + step]
            ]
            payloads, places = [bytes(sizes[i]) for i in rows], np.array([offsets[i] for i in rows])
            while payloads:
                fit = part.count_fitting(payloads, "in", places)
                part.add(payloads[:fit], "in", places[:fit], [b"id"] * fit)
                found[-1] += zip(places[:fit].tolist(), map(len, payloads[:fit]), strict=True)
                payloads, places = payloads[fit:], places[fit:]
                if payloads:
                    assert (
                        part.is_full
                        and part.examples == len({place for place, _ in found[-1]})
                        and part.count == len(found[-1])
                    )
                    part = Part(file, str(tmp_path), limits)
                    found.append([])
        return found

    # One record after the other, as whoever reads the rule would cut them.
    expected: list[list[tuple[int, int]]] = [[]]
    for place, size in zip(offsets, sizes, strict=True):
        full = len(expected[-1]) >= most or sum(16 + other for _, other in expected[-1]) >= largest
        if full and expected[-1][-1][0] != place:
            expected.append([])
        expected[-1].append((place, size))
    for step in (1, 2, 6):
        assert parts(step) == expected
