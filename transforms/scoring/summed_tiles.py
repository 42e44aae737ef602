"""The plan of stage 2 where scores are sums over the positions of examples: tiles whose borders
fall between examples.

A test block's borders are known once the positions of the test examples are counted. A training
range is of whole files, which end between examples, so the training set need not be read to be cut.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from transforms.core.shapes import Shape, Span
from transforms.scoring.costs import (
    SHUFFLED_CANDIDATE_BYTES,
    SHUFFLED_ROW_BYTES,
    WRITTEN_CANDIDATE_BYTES,
    WRITTEN_ROW_BYTES,
    Cost,
    FeatureFiles,
    pieces,
)
from transforms.scoring.tiles import (
    CANDIDATE_BYTES,
    FIXED_BYTES,
    TILE_FLOPS,
    Grid,
    Tile,
    even_part,
    rows_per_file,
    spans,
)

# Training examples that are held at once, at most: products with all test examples of a group are.
_MOST_CHUNK = 8192

# A test block and a training chunk of fewer examples than this would be read again and again for
# nothing.
_FEWEST = 4

# An id, at most, and what is told of an example.
_EXAMPLE_BYTES = 700


@dataclasses.dataclass(frozen=True)
class SummedTile(Tile):
    """A block of test examples and a range of training examples, whose records are positions of
    them.

    Attributes:
        test_start: row of the block's first example among the test set's examples.
        chunk_rows: how many training examples are held at once.
        test_rows: how many test examples the block has.
    """

    test_rows: int


def vector_bytes(shape: Shape) -> int:
    """Memory of the gradient of an example, T·C·D numbers in float64."""
    return 8 * shape.checkpoints * shape.outputs * shape.units


def pair_flops(shape: Shape) -> int:
    """Arithmetic of one pair of examples."""
    return vector_bytes(shape) // 4


def choose_grid(
    shape: Shape,
    tests: int,
    trains: int,
    k: int,
    memory_bytes: float,
    extra_bytes: int = 0,
    test_rows: int | None = None,
    train_rows: int | None = None,
) -> Grid:
    """The grid, in examples, for a memory budget of one tile in work; `test_rows` and `train_rows`
    are given by hand, whatever they take.

    `extra_bytes` are taken by what does not depend on it: files that are larger than others; see
    `file_bytes`.

    Raises:
        ValueError: not even a few gradients fit.
    """
    share = (memory_bytes - FIXED_BYTES - extra_bytes) / 2
    per_test, per_train = _test_bytes(shape, k), _train_bytes(shape)
    most_tests, most_chunk = int(share // per_test), min(_MOST_CHUNK, int(share // per_train))
    if most_tests < _FEWEST or most_chunk < _FEWEST:
        needed = (FIXED_BYTES + extra_bytes + 2 * _FEWEST * max(per_test, per_train)) / 1e9
        why = f" and a file of {extra_bytes / 4e9:.2f} GB more than others" if extra_bytes else ""
        raise ValueError(
            f"{memory_bytes / 1e9:g} GB for one worker process are too little for gradients of "
            f"{shape.checkpoints} × {shape.outputs} × "
            f"{shape.units} numbers{why}: it needs {needed:.2f} GB"
        )
    planned_tests = even_part(min(tests, rows_per_file(k)), most_tests)
    worthwhile = int(TILE_FLOPS / (pair_flops(shape) * planned_tests))
    planned_trains = even_part(trains, max(most_chunk, worthwhile))
    return Grid(
        test_rows or planned_tests, train_rows or planned_trains, min(most_chunk, planned_trains)
    )


def file_bytes(largest: int, usual: int) -> int:
    """Memory that the largest file of a set takes beyond what those of the usual size do, while it
    is read, cut into records and parsed.
    """
    return 4 * max(0, largest - usual)


def memory_bytes(grid: Grid, shape: Shape, k: int, extra_bytes: int) -> int:
    """Peak of one worker process with a grid."""
    return (
        FIXED_BYTES
        + extra_bytes
        + grid.test_rows * _test_bytes(shape, k)
        + grid.chunk_rows * _train_bytes(shape)
    )


def _test_bytes(shape: Shape, k: int) -> int:
    """Memory of a test example while its block is in work: its gradient, in float32 too, and
    candidates of both signs.
    """
    return vector_bytes(shape) * 3 // 2 + _EXAMPLE_BYTES + 2 * k * CANDIDATE_BYTES


def _train_bytes(shape: Shape) -> int:
    """Memory of a chunk, by training example: its gradient, in float32 too, and the next
    chunk's.
    """
    return vector_bytes(shape) * 5 // 2 + 3 * _EXAMPLE_BYTES


def train_ranges(grid: Grid, counts: Sequence[int], examples: int) -> Iterator[tuple[Span, ...]]:
    """The training ranges, of whole files that hold `counts` records, of so many examples in all.

    Each has the fewest files that hold, at the set's mean number of positions, as many examples as
    the grid says.
    """
    enough = grid.train_rows * sum(counts) / max(1, examples)
    found: list[Span] = []
    for file, count in enumerate(counts):
        if count:
            found.append(Span(file, 0, count))
        if found and sum(map(len, found)) >= enough:
            yield tuple(found)
            found = []
    if found:
        yield tuple(found)


def tiles(
    grid: Grid,
    positions: Sequence[np.ndarray],
    train_counts: Sequence[int],
    train_examples: int,
    file_rows: int,
) -> Iterator[SummedTile]:
    """The tiles of two feature sets; a test block meets every training example once.

    `positions` are the numbers of positions of the examples of each test file; `train_counts` and
    `train_examples` are those of `train_ranges`. Test blocks do not cross the borders of output
    files, which have `file_rows` rows.
    """
    borders = [np.concatenate([[0], np.cumsum(one)]).tolist() for one in positions]
    counts = [len(one) for one in positions]
    ranges = list(train_ranges(grid, train_counts, train_examples))
    for shard_start in range(0, sum(counts), file_rows):
        shard_stop = min(shard_start + file_rows, sum(counts))
        for start in range(shard_start, shard_stop, grid.test_rows):
            stop = min(start + grid.test_rows, shard_stop)
            block = tuple(
                Span(one.file, borders[one.file][one.start], borders[one.file][one.stop])
                for one in spans(counts, start, stop)
            )
            first = 0
            for trains in ranges:
                yield SummedTile(start, first, block, trains, grid.chunk_rows, stop - start)
                first += sum(map(len, trains))


def predict(
    grid: Grid,
    shape: Shape,
    k: int,
    tests: int,
    trains: int,
    test_files: Sequence[FeatureFiles],
    train_files: Sequence[FeatureFiles],
    extra_bytes: int = 0,
) -> Cost:
    """What the tiles of a grid cost, of so many test and training examples whose records are in
    these files.

    Where the borders of test blocks are in their files is not known, so each is taken to cut a
    file.
    """
    file_rows = rows_per_file(k)
    blocks = pieces(tests, file_rows, grid.test_rows)
    counts = [one.records for one in train_files for _ in range(one.number)]
    ranges = [sum(map(len, one)) for one in train_ranges(grid, counts, trains)]
    train_rows = [math.ceil(one * trains / sum(counts)) for one in ranges]
    test_bytes, train_bytes = (
        sum(one.number * one.bytes for one in files) for files in (test_files, train_files)
    )
    cut = max(0, blocks - 1) * max((one.bytes for one in test_files), default=0)
    candidates = tests * sum(min(2 * k, one) for one in train_rows)
    planned = dataclasses.replace(
        grid,
        test_rows=min(grid.test_rows, file_rows, tests),
        chunk_rows=min(grid.chunk_rows, trains),
    )
    return Cost(
        pairs=tests * trains,
        flops=tests * trains * pair_flops(shape),
        tiles=blocks * len(ranges),
        test_blocks=blocks,
        train_ranges=len(ranges),
        test_rows=planned.test_rows,
        train_rows=max(train_rows, default=0),
        chunk_rows=planned.chunk_rows,
        chunks=blocks * sum(math.ceil(one / grid.chunk_rows) for one in train_rows),
        train_bytes_read=blocks * train_bytes,
        # Once to count the positions.
        test_bytes_read=2 * test_bytes + cut,
        test_bytes_read_at_most=test_bytes + len(ranges) * (test_bytes + cut),
        memory_bytes=memory_bytes(planned, shape, k, extra_bytes),
        candidates=candidates,
        shuffled_bytes=candidates * SHUFFLED_CANDIDATE_BYTES
        + tests * len(ranges) * SHUFFLED_ROW_BYTES,
        result_rows=tests,
        result_files=2 * math.ceil(tests / file_rows),
        result_bytes=tests * (min(2 * k, trains) * WRITTEN_CANDIDATE_BYTES + WRITTEN_ROW_BYTES),
    )
