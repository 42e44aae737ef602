"""Tiles whose borders fall between examples, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.core.shapes import Shape, Span
from transforms.scoring import summed_tiles
from transforms.scoring.summed_tiles import choose_grid, file_bytes, memory_bytes, vector_bytes
from transforms.scoring.tiles import Grid

TAGGER = Shape(3, 20, 257)
LANGUAGE = Shape(1, 30_000, 769)

FILES = st.lists(st.lists(st.integers(1, 5), max_size=6), max_size=5)


def rows_of(counts: list[int], found: tuple[Span, ...]) -> list[int]:
    return [
        sum(counts[: span.file]) + row for span in found for row in range(span.start, span.stop)
    ]


@settings(max_examples=200, deadline=None)
@given(FILES, FILES, st.integers(1, 12), st.integers(1, 12), st.integers(1, 20))
def test_every_pair_is_in_exactly_one_tile_and_no_example_in_two(
    tests, trains, test_rows, train_rows, file_rows
):
    counts = [[sum(file) for file in files] for files in (tests, trains)]
    # Which example each record is of.
    owners = [
        np.repeat(np.arange(sum(map(len, files))), [size for file in files for size in file])
        for files in (tests, trains)
    ]
    examples = [sum(map(len, files)) for files in (tests, trains)]
    grid = Grid(test_rows, train_rows, 7)
    seen = np.zeros((examples[0], examples[1]), int)
    sizes = [np.array(file, int) for file in tests]
    for tile in summed_tiles.tiles(grid, sizes, counts[1], examples[1], file_rows):
        found = []
        for spans, files, own in zip((tile.tests, tile.trains), counts, owners, strict=True):
            records = rows_of(files, spans)
            found.append(np.unique(own[records]))
            assert np.isin(own, found[-1]).sum() == len(records)
        assert found[0].tolist() == list(range(tile.test_start, tile.test_start + tile.test_rows))
        assert tile.test_rows <= test_rows and found[0][0] // file_rows == found[0][-1] // file_rows
        assert all(span.start == 0 and span.stop == counts[1][span.file] for span in tile.trains)
        seen[np.ix_(*found)] += 1
    assert (seen == 1).all()


def test_a_range_has_the_fewest_files_that_hold_enough_examples():
    counts = [30, 0, 30, 60, 30, 30, 60]  # of 3 positions each
    ranges = summed_tiles.train_ranges(Grid(1, 20, 1), counts, 80)
    assert [[span.file for span in one] for one in ranges] == [[0, 2], [3], [4, 5], [6]]


@pytest.mark.parametrize("shape", [TAGGER, LANGUAGE])
@pytest.mark.parametrize("memory", [5e9, 16e9])
@pytest.mark.parametrize("k", [1, 50, 1000])
@pytest.mark.parametrize("trains", [10**4, 10**9])
def test_memory_is_within_the_budget_for_any_number_of_training_examples(shape, memory, k, trains):
    grid = choose_grid(shape, 50_000, trains, k, memory)
    assert grid.test_rows >= 4 and grid.chunk_rows >= 4 and grid.train_rows >= grid.chunk_rows
    assert (
        (grid.test_rows + 3 * grid.chunk_rows) * vector_bytes(shape)
        < memory_bytes(grid, shape, k, 0)
        <= memory
    )


def test_a_budget_that_holds_nothing_says_what_it_needs_and_what_it_needs_suffices():
    with pytest.raises(
        ValueError,
        match=r"2 GB .* too little for gradients of 1 × 30000 × 769 numbers: it needs 4\.03 GB",
    ):
        choose_grid(LANGUAGE, 100, 100, 10, 2e9)
    choose_grid(LANGUAGE, 100, 100, 10, 4.04e9)
    extra = file_bytes(500 << 20, 32 << 20)
    with pytest.raises(
        ValueError, match=r"and a file of 0\.49 GB more than others: it needs 2\.30 GB"
    ):
        choose_grid(TAGGER, 100, 100, 10, 2e9, extra)
    choose_grid(TAGGER, 100, 100, 10, 2.31e9, extra)
    assert file_bytes(10, 32 << 20) == 0
