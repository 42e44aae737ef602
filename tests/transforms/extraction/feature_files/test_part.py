"""Feature files end where they are full, and between examples."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from transforms.examples.format import InputFile
from transforms.extraction.feature_files.part import FileLimits, Part


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("largest", [1, 120, 10_000])
def test_parts_are_cut_where_they_are_full_and_never_inside_an_example(
    tmp_path: pathlib.Path, most: int, largest: int
) -> None:
    limits = FileLimits(most, largest)
    file = InputFile(0, "in", "in", 1)
    sizes, offsets = [20, 5, 60, 0, 31, 31, 8, 90, 2], [0, 1, 1, 1, 4, 5, 5, 7, 9]

    def parts(step: int) -> list[list[tuple[int, int]]]:
        """The offsets and sizes of the records in each part, where they come `step` examples at a
        time.
        """
        part, files = Part(file, str(tmp_path), limits), [[]]
        examples = sorted(set(offsets))
        for start in range(0, len(examples), step):
            rows = [
                i for i, offset in enumerate(offsets) if offset in examples[start : start + step]
            ]
            payloads, chosen = [bytes(sizes[i]) for i in rows], np.array([offsets[i] for i in rows])
            while payloads:
                fit = part.count_fitting(payloads, "in", chosen)
                part.add(payloads[:fit], "in", chosen[:fit], [b"id"] * fit)
                files[-1] += zip(chosen[:fit].tolist(), map(len, payloads[:fit]), strict=True)
                payloads, chosen = payloads[fit:], chosen[fit:]
                if payloads:
                    assert (
                        part.is_full
                        and part.examples == len({offset for offset, _ in files[-1]})
                        and part.count == len(files[-1])
                    )
                    part = Part(file, str(tmp_path), limits)
                    files.append([])
        return files

    # One record after the other, as whoever reads the rule would cut them.
    expected: list[list[tuple[int, int]]] = [[]]
    for offset, size in zip(offsets, sizes, strict=True):
        full = len(expected[-1]) >= most or sum(16 + other for _, other in expected[-1]) >= largest
        if full and expected[-1][-1][0] != offset:
            expected.append([])
        expected[-1].append((offset, size))
    for step in (1, 2, 6):
        assert parts(step) == expected
