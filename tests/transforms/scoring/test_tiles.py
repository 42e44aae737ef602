"""The plan of stage 2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.core.shapes import Shape, Span
from transforms.scoring import tiles
from transforms.scoring.costs import FeatureFiles, predict
from transforms.scoring.tiles import Grid, choose_grid, chunks, rows_per_file, spans

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
    for tile in tiles.tiles(
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
    held = (
        grid.test_rows * (2 * shape.record_bytes + 320 * k)
        + grid.chunk_rows * 4 * shape.record_bytes
    )
    assert held <= memory


def test_fashion_mnist_is_one_tile_and_imagenet_is_many():
    one = choose_grid(FASHION, 10_000, 60_000, 50, 2e9)
    assert (one.test_rows, one.train_rows) == (10_000, 60_000)
    grid = choose_grid(IMAGENET, 50_000, 1_281_167, 50, 2e9)
    assert 100 < len(list(tiles.tiles(grid, [50_000], [1_281_167], 10_000))) < 5000


def test_a_budget_that_holds_nothing_says_what_it_needs():
    with pytest.raises(
        ValueError, match=r"0\.1 GB for one worker process are too little: it needs 0\.\d\d GB"
    ):
        choose_grid(IMAGENET, 1000, 1000, 10, 0.1e9)


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
    planned = choose_grid(shape, 50_000, 10**6, 50, 2e9)
    grid = choose_grid(shape, 50_000, 10**6, 50, 2e9, *by_hand)
    assert (grid.test_rows, grid.train_rows) == (
        by_hand[0] or planned.test_rows,
        by_hand[1] or planned.train_rows,
    )
    assert grid.chunk_rows == min(planned.chunk_rows, grid.train_rows)


def walked(
    grid: Grid, k: int, test_files: list[tuple[int, int]], train_files: list[tuple[int, int]]
) -> dict[str, int]:
    """What a walk through the tiles counts; files are given as (records, bytes)."""
    found = dict.fromkeys(
        (
            "tiles",
            "pairs",
            "chunks",
            "train_bytes_read",
            "test_bytes_read",
            "test_bytes_read_at_most",
            "candidates",
            "rows_out",
        ),
        0,
    )
    most = {"test_rows": 0, "train_rows": 0, "chunk_rows": 0}
    blocks, kept = set(), None
    counts = [[records for records, _ in files] for files in (test_files, train_files)]
    # First tiles first, as they are scored.
    for tile in sorted(
        tiles.tiles(grid, *counts, rows_per_file(k)), key=lambda tile: tile.train_start > 0
    ):
        tests, trains = (sum(map(len, found)) for found in (tile.tests, tile.trains))
        read = sum(test_files[span.file][1] for span in tile.tests)
        found["tiles"] += 1
        found["pairs"] += tests * trains
        found["test_bytes_read_at_most"] += read
        found["test_bytes_read"] += 0 if tile.tests == kept else read
        found["candidates"] += tests * min(2 * k, trains)
        found["rows_out"] += tests
        kept = tile.tests
        blocks.add(kept)
        most["test_rows"] = max(most["test_rows"], tests)
        most["train_rows"] = max(most["train_rows"], trains)
        for chunk in chunks(tile.trains, tile.chunk_rows):
            found["chunks"] += 1
            found["train_bytes_read"] += sum(train_files[span.file][1] for span in chunk)
            most["chunk_rows"] = max(most["chunk_rows"], sum(map(len, chunk)))
    return {**found, **most, "test_blocks": len(blocks)}


FILES = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 1000)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    FILES,
    FILES,
    st.integers(1, 12),
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([1, 2, 5, 400_000, 10**6]),
)
def test_a_prediction_is_what_a_walk_through_the_tiles_counts(
    test_files, train_files, test_rows, train_rows, chunk_rows, k
):
    # With k = 400,000 an output file has 5 rows, with 10⁶ it has 2.
    grid = Grid(test_rows, train_rows, min(chunk_rows, train_rows))
    cost = predict(
        grid,
        FASHION,
        k,
        *(
            [FeatureFiles(1, *one) for one in files if one[0]]
            for files in (test_files, train_files)
        ),
    )
    expected = walked(grid, k, test_files, train_files)
    tests, trains = (sum(records for records, _ in files) for files in (test_files, train_files))
    if tests and trains:
        for name in expected.keys() - {"rows_out"}:
            assert getattr(cost, name) == expected[name], name
        assert cost.train_ranges * cost.test_blocks == cost.tiles
    else:
        assert (
            cost.pairs
            == cost.tiles
            == cost.chunks
            == cost.train_bytes_read
            == cost.test_bytes_read_at_most
            == cost.candidates
            == 0
        )
    assert cost.flops == tests * trains * 2 * 6 * (10 + 129)
    assert cost.result_rows == tests
    assert cost.result_files == 2 * len(range(0, tests, rows_per_file(k)))
    assert cost.shuffled_bytes == 32 * expected["candidates"] + 40 * expected["rows_out"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 100)), max_size=4),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_files_given_as_alike_are_read_as_if_they_were_given_one_by_one_but_for_cuts_between_them(
    runs, train_rows, chunk_rows
):
    grid = Grid(3, train_rows, min(chunk_rows, train_rows))
    alike = [FeatureFiles(*run) for run in runs]
    one_by_one = [
        FeatureFiles(1, records, size) for number, records, size in runs for _ in range(number)
    ]
    tests = [FeatureFiles(1, 3, 50)]
    about, sure = (
        predict(grid, FASHION, 2, tests, alike),
        predict(grid, FASHION, 2, tests, one_by_one),
    )
    between = sum((number - 1) * size for number, _, size in runs)
    assert sure.train_bytes_read <= about.train_bytes_read <= sure.train_bytes_read + between
    assert (about.pairs, about.tiles, about.chunks, about.candidates) == (
        sure.pairs,
        sure.tiles,
        sure.chunks,
        sure.candidates,
    )


@settings(max_examples=200, deadline=None)
@given(
    st.builds(Shape, st.integers(1, 20), st.integers(1, 2000), st.integers(1, 5000)),
    st.integers(0, 10**6),
    st.integers(1, 10**10),
    st.integers(1, 1000),
    st.floats(0.5e9, 64e9),
)
def test_what_a_planned_grid_is_predicted_to_take_is_within_the_budget(
    shape, tests, trains, k, memory
):
    try:
        grid = choose_grid(shape, tests, trains, k, memory)
    except ValueError:
        return
    cost = predict(
        grid,
        shape,
        k,
        [FeatureFiles(1, tests, 10**6)] if tests else [],
        [FeatureFiles(1, trains, 10**9)],
    )
    assert cost.memory_bytes <= memory
    assert cost.memory_bytes >= 320 << 20


def test_a_block_by_hand_that_takes_more_than_the_budget_is_predicted_to():
    grid = choose_grid(FASHION, 10_000, 60_000, 50, 0.5e9, test_rows=10_000)
    files = [FeatureFiles(1, 10_000, 1)], [FeatureFiles(1, 60_000, 1)]
    assert predict(grid, FASHION, 50, *files).memory_bytes > 0.5e9


def test_billions_of_examples_are_predicted_at_once():
    files = [FeatureFiles(10**7, 1000, 10**6)]
    cost = predict(Grid(100, 10, 1), FASHION, 10, files, files)
    assert cost.pairs == 10**20
    assert cost.tiles == 10**8 * 10**9
