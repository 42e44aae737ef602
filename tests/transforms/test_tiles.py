"""The plan of stage 2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import tiles
from transforms.tiles import Grid, Shape, Span, choose_grid, chunks, spans

IMAGENET = Shape(3, 1000, 2049)
FASHION = Shape(6, 10, 129)


def rows_of(counts: list[int], found: tuple[Span, ...]) -> list[int]:
    return [sum(counts[: span.file]) + row for span in found for row in range(span.start, span.stop)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.lists(st.integers(0, 9), max_size=6),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_every_pair_is_in_exactly_one_tile(test_counts, train_counts, test_rows, train_rows, chunk_rows, file_rows):
    seen = set()
    for tile in tiles.tiles(Grid(test_rows, train_rows, chunk_rows), test_counts, train_counts, file_rows):
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
    planned = list(tiles.tiles(Grid(6000, 10**6, 10**6), [25_000], [10], 10_000))
    assert [tile.test_start for tile in planned] == [0, 6000, 10_000, 16_000, 20_000]


def test_spans_skip_empty_files():
    assert spans([3, 0, 4], 2, 5) == (Span(0, 2, 3), Span(2, 0, 2))


@pytest.mark.parametrize("shape", [FASHION, IMAGENET])
@pytest.mark.parametrize("memory", [0.5e9, 2e9, 16e9])
@pytest.mark.parametrize("k", [1, 50, 1000])
@pytest.mark.parametrize("trains", [10**4, 10**6, 10**9])
def test_memory_is_within_the_budget_for_any_number_of_training_examples(shape, memory, k, trains):
    grid = choose_grid(shape, 50_000, trains, k, memory)
    held = grid.test_rows * (2 * shape.record_bytes + 320 * k) + grid.chunk_rows * 4 * shape.record_bytes
    assert held <= memory


def test_fashion_mnist_is_one_tile_and_imagenet_is_many():
    one = choose_grid(FASHION, 10_000, 60_000, 50, 2e9)
    assert (one.test_rows, one.train_rows) == (10_000, 60_000)
    grid = choose_grid(IMAGENET, 50_000, 1_281_167, 50, 2e9)
    assert 100 < len(list(tiles.tiles(grid, [50_000], [1_281_167], 10_000))) < 5000


def test_a_budget_that_holds_nothing_says_what_it_needs():
    with pytest.raises(ValueError, match=r"0\.1 GB for one worker process are too little: it needs 0\.\d\d GB"):
        choose_grid(IMAGENET, 1000, 1000, 10, 0.1e9)


def test_output_files_have_fewer_rows_where_each_row_is_long():
    assert [tiles.rows_per_file(k) for k in (1, 200, 201, 1000, 10**7)] == [10_000, 10_000, 9950, 2000, 1]
