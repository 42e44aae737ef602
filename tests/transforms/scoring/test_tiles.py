"""Tiles, of records and of examples whose records are positions, and grids that fit a memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.core.shapes import Shape, Span
from transforms.scoring import tiles
from transforms.scoring.tiles import (
    Grid,
    choose_grid,
    chunks,
    gradient_footprint,
    record_footprint,
    spans,
    train_ranges,
    vector_bytes,
)

IMAGENET = Shape(3, 1000, 2049)
FASHION = Shape(6, 10, 129)


def rows_of(counts: list[int], found: tuple[Span, ...]) -> list[int]:
    return [
        sum(counts[: span.file]) + row for span in found for row in range(span.start, span.stop)
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.lists(st.integers(0, 9), max_size=6),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_every_pair_is_in_exactly_one_tile(
    test_counts, train_counts, test_rows, train_rows, chunk_rows, file_rows
):
    seen = set()
    for tile in tiles.record_tiles(
        Grid(test_rows, train_rows, chunk_rows), test_counts, train_counts, file_rows
    ):
        tests, trains = rows_of(test_counts, tile.tests), rows_of(train_counts, tile.trains)
        assert tests[0] == tile.test_start
        assert len(tests) <= test_rows and len(trains) <= train_rows
        assert tests[0] // file_rows == tests[-1] // file_rows
        chunked = list(chunks(tile.trains, tile.chunk_rows))
        assert [row for chunk in chunked for row in rows_of(train_counts, chunk)] == trains
        assert all(0 < sum(map(len, chunk)) <= chunk_rows for chunk in chunked)
        pairs = {(i, j) for i in tests for j in trains}
        assert not pairs & seen
        seen |= pairs
    assert seen == {(i, j) for i in range(sum(test_counts)) for j in range(sum(train_counts))}


def test_test_blocks_do_not_cross_the_border_of_an_output_file():
    planned = list(tiles.record_tiles(Grid(6000, 10**6, 10**6), [25_000], [10], 10_000))
    assert [tile.test_start for tile in planned] == [0, 6000, 10_000, 16_000, 20_000]


def test_spans_skip_empty_files():
    assert spans([3, 0, 4], 2, 5) == (Span(0, 2, 3), Span(2, 0, 2))


@pytest.mark.parametrize("shape", [FASHION, IMAGENET])
@pytest.mark.parametrize("memory", [0.5e9, 2e9, 16e9])
@pytest.mark.parametrize("k", [1, 50, 1000])
@pytest.mark.parametrize("trains", [10**4, 10**6, 10**9])
def test_memory_is_within_the_budget_for_any_number_of_training_examples(shape, memory, k, trains):
    grid = choose_grid(record_footprint(shape, k), 50_000, trains, memory)
    held = (
        grid.test_rows * (2 * shape.record_bytes + 320 * k)
        + grid.chunk_rows * 4 * shape.record_bytes
    )
    assert held <= memory


def test_fashion_mnist_is_one_tile_and_imagenet_is_many():
    one = choose_grid(record_footprint(FASHION, 50), 10_000, 60_000, 2e9)
    assert (one.test_rows, one.train_rows) == (10_000, 60_000)
    grid = choose_grid(record_footprint(IMAGENET, 50), 50_000, 1_281_167, 2e9)
    assert 100 < len(list(tiles.record_tiles(grid, [50_000], [1_281_167], 10_000))) < 5000


def test_a_budget_that_holds_nothing_says_what_it_needs():
    with pytest.raises(
        ValueError, match=r"0\.1 GB for one worker process are too little: it needs 0\.\d\d GB"
    ):
        choose_grid(record_footprint(IMAGENET, 10), 1000, 1000, 0.1e9)


def test_output_files_have_fewer_rows_where_each_row_is_long():
    assert [tiles.rows_per_file(k) for k in (1, 200, 201, 1000, 10**7)] == [
        10_000,
        10_000,
        9950,
        2000,
        1,
    ]


@pytest.mark.parametrize("shape", [FASHION, IMAGENET])
@pytest.mark.parametrize("by_hand", [(None, None), (7, None), (None, 100), (10**6, 10**9), (1, 1)])
def test_a_grid_by_hand_replaces_what_was_planned_and_holds_no_more_than_fits(shape, by_hand):
    planned = choose_grid(record_footprint(shape, 50), 50_000, 10**6, 2e9)
    grid = choose_grid(record_footprint(shape, 50), 50_000, 10**6, 2e9, *by_hand)
    assert (grid.test_rows, grid.train_rows) == (
        by_hand[0] or planned.test_rows,
        by_hand[1] or planned.train_rows,
    )
    assert grid.chunk_rows == min(planned.chunk_rows, grid.train_rows)


# Examples whose records are positions

TAGGER = Shape(3, 20, 257)
LANGUAGE = Shape(1, 30_000, 769)

USUAL = 32 << 20  # bytes of a file

FILES = st.lists(st.lists(st.integers(1, 5), max_size=6), max_size=5)


@settings(max_examples=200, deadline=None)
@given(FILES, FILES, st.integers(1, 12), st.integers(1, 12), st.integers(1, 20))
def test_every_pair_of_examples_is_in_exactly_one_tile_and_no_example_in_two(
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
    for tile in tiles.position_tiles(grid, sizes, counts[1], examples[1], file_rows):
        found = []
        for part, files, own in zip((tile.tests, tile.trains), counts, owners, strict=True):
            records = rows_of(files, part)
            found.append(np.unique(own[records]))
            assert np.isin(own, found[-1]).sum() == len(records)
        assert found[0].tolist() == list(range(tile.test_start, tile.test_start + tile.test_rows))
        assert tile.test_rows <= test_rows and found[0][0] // file_rows == found[0][-1] // file_rows
        assert all(span.start == 0 and span.stop == counts[1][span.file] for span in tile.trains)
        seen[np.ix_(*found)] += 1
    assert (seen == 1).all()


def test_a_range_has_the_fewest_files_that_hold_enough_examples():
    counts = [30, 0, 30, 60, 30, 30, 60]  # of 3 positions each
    ranges = train_ranges(Grid(1, 20, 1), counts, 80)
    assert [[span.file for span in one] for one in ranges] == [[0, 2], [3], [4, 5], [6]]


@pytest.mark.parametrize("shape", [TAGGER, LANGUAGE])
@pytest.mark.parametrize("memory", [5e9, 16e9])
@pytest.mark.parametrize("k", [1, 50, 1000])
@pytest.mark.parametrize("trains", [10**4, 10**9])
def test_gradients_are_within_the_budget(shape, memory, k, trains):
    footprint = gradient_footprint(shape, k, 0, USUAL)
    grid = choose_grid(footprint, 50_000, trains, memory)
    assert grid.test_rows >= 4 and grid.chunk_rows >= 4 and grid.train_rows >= grid.chunk_rows
    assert (
        (grid.test_rows + 3 * grid.chunk_rows) * vector_bytes(shape)
        < footprint.memory_bytes(grid.test_rows, grid.chunk_rows)
        <= memory
    )


def test_a_budget_that_holds_no_gradients_says_what_it_needs_and_what_it_needs_suffices():
    footprint = gradient_footprint(LANGUAGE, 10, USUAL, USUAL)
    with pytest.raises(
        ValueError,
        match=r"2 GB .* too little for gradients of 1 × 30000 × 769 numbers: it needs 4\.03 GB",
    ):
        choose_grid(footprint, 100, 100, 2e9)
    choose_grid(footprint, 100, 100, 4.04e9)
    footprint = gradient_footprint(TAGGER, 10, 500 << 20, USUAL)
    with pytest.raises(
        ValueError, match=r"and a file of 0\.49 GB more than others: it needs 2\.30 GB"
    ):
        choose_grid(footprint, 100, 100, 2e9)
    choose_grid(footprint, 100, 100, 2.31e9)
    assert gradient_footprint(TAGGER, 10, 10, USUAL) == gradient_footprint(TAGGER, 10, 0, USUAL)
