"""Predicted costs against a walk through the tiles."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.core.shapes import Shape
from transforms.scoring import tiles
from transforms.scoring.costs import FeatureFiles, predict
from transforms.scoring.tiles import Grid, choose_grid, chunks, record_footprint, rows_per_file

FASHION = Shape(6, 10, 129)


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
        tiles.record_tiles(grid, *counts, rows_per_file(k)), key=lambda tile: tile.train_start > 0
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
        record_footprint(FASHION, k),
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
        predict(grid, record_footprint(FASHION, 2), tests, alike),
        predict(grid, record_footprint(FASHION, 2), tests, one_by_one),
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
        grid = choose_grid(record_footprint(shape, k), tests, trains, memory)
    except ValueError:
        return
    cost = predict(
        grid,
        record_footprint(shape, k),
        [FeatureFiles(1, tests, 10**6)] if tests else [],
        [FeatureFiles(1, trains, 10**9)],
    )
    assert cost.memory_bytes <= memory
    assert cost.memory_bytes >= 320 << 20


def test_a_block_by_hand_that_takes_more_than_the_budget_is_predicted_to():
    grid = choose_grid(record_footprint(FASHION, 50), 10_000, 60_000, 0.5e9, test_rows=10_000)
    files = [FeatureFiles(1, 10_000, 1)], [FeatureFiles(1, 60_000, 1)]
    assert predict(grid, record_footprint(FASHION, 50), *files).memory_bytes > 0.5e9


def test_billions_of_examples_are_predicted_at_once():
    files = [FeatureFiles(10**7, 1000, 10**6)]
    cost = predict(Grid(100, 10, 1), record_footprint(FASHION, 10), files, files)
    assert cost.pairs == 10**20
    assert cost.tiles == 10**8 * 10**9
