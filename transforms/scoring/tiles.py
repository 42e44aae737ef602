"""The plan of stage 2: the test × train grid cut into tiles that fit the memory and are worth a
worker's while, and what it costs.

A tile is a block of test examples and a range of training examples. The block is held in memory
while the range streams through in chunks, so memory depends on neither set's size. What a tile
finds is one block of candidates; the tiles of a test block are merged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from transforms.core.shapes import Shape, Span

_ROWS_PER_FILE = 10_000

_CANDIDATES_PER_FILE = 2_000_000

# A tile of about this much arithmetic takes some seconds on a core: long against its overhead,
# short against a worker's life.
TILE_FLOPS = 4e12

# What grows with nothing: blocks of scores, candidates that are not yet sifted, and the file that
# is being read and decoded.
FIXED_BYTES = 320 << 20

# Memory of a candidate: score, row, id, label; and what merging them holds twice.
CANDIDATE_BYTES = 160


def rows_per_file(k: int) -> int:
    """Rows of an output file: 10,000, and fewer from k = 200 on, since a file's rows are written at
    once. A function of k alone.
    """
    return max(1, min(_ROWS_PER_FILE, _CANDIDATES_PER_FILE // k))


@dataclasses.dataclass(frozen=True)
class Tile:
    """A block of test examples and a range of training examples.

    Attributes:
        test_start: row of the block's first example in the test set.
        train_start: row of the range's first example in the training set; at 0, it is the first to
            be searched.
        tests: where the block's records are.
        trains: where the range's records are.
        chunk_rows: how many training examples are held at once.
    """

    test_start: int
    train_start: int
    tests: tuple[Span, ...]
    trains: tuple[Span, ...]
    chunk_rows: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """How many test rows a tile's block has, how many training rows its range, and how many of
    those are held at once.
    """

    test_rows: int
    train_rows: int
    chunk_rows: int


def choose_grid(
    shape: Shape,
    tests: int,
    trains: int,
    k: int,
    memory_bytes: float,
    test_rows: int | None = None,
    train_rows: int | None = None,
) -> Grid:
    """The grid for a memory budget of one tile in work; `test_rows` and `train_rows` are those
    given by hand, whatever they take.

    Half of what is left after the fixed part is for the test block, half for the training chunks.

    Raises:
        ValueError: not even a few records fit.
    """
    share = (memory_bytes - FIXED_BYTES) / 2
    per_test, per_train = test_bytes(shape, k), train_bytes(shape)
    most_tests, most_chunk = int(share // per_test), int(share // per_train)
    if most_tests < 16 or most_chunk < 16:
        needed = (FIXED_BYTES + 32 * max(per_test, per_train)) / 1e9
        raise ValueError(
            f"{memory_bytes / 1e9:g} GB for one worker process are too little: it needs "
            f"{needed:.2f} GB"
        )
    planned_tests = even_part(min(tests, rows_per_file(k)), most_tests)
    planned_trains = even_part(
        trains, max(most_chunk, int(TILE_FLOPS / (shape.pair_flops * max(1, planned_tests))))
    )
    chunk_rows = even_part(planned_trains, most_chunk)
    return Grid(
        test_rows or planned_tests,
        train_rows or planned_trains,
        min(chunk_rows, train_rows or chunk_rows),
    )


def test_bytes(shape: Shape, k: int) -> int:
    """Memory of a test example while its block is in work: its record, scaled factors, candidates
    of both signs.
    """
    return 2 * shape.record_bytes + shape.checkpoints * 100 + 2 * k * CANDIDATE_BYTES


def train_bytes(shape: Shape) -> int:
    """Memory of a chunk, by training example.

    Its records, their scaled factors, and the next chunk, whose files are joined while it is read;
    loss gradients in blocks, with outlines of 64 of them, and sketches of 24 numbers a checkpoint,
    by record and in blocks.
    """
    return 4 * shape.record_bytes + shape.checkpoints * (4 * shape.outputs + 2 * 96 + 32)


def even_part(total: int, most: int) -> int:
    """The size of the fewest equal parts of `total` that are at most `most`; at least 1."""
    return max(1, math.ceil(total / math.ceil(total / most))) if total else 1


def tiles(
    grid: Grid, test_counts: Sequence[int], train_counts: Sequence[int], file_rows: int
) -> Iterator[Tile]:
    """The tiles of two feature sets whose files hold these numbers of records; a test block meets
    every training example once.

    Test blocks do not cross the borders of output files, which have `file_rows` rows.
    """
    tests, trains = sum(test_counts), sum(train_counts)
    for shard_start in range(0, tests, file_rows):
        shard_stop = min(shard_start + file_rows, tests)
        for test_start in range(shard_start, shard_stop, grid.test_rows):
            block = spans(test_counts, test_start, min(test_start + grid.test_rows, shard_stop))
            for train_start in range(0, trains, grid.train_rows):
                rows = spans(train_counts, train_start, min(train_start + grid.train_rows, trains))
                yield Tile(test_start, train_start, block, rows, grid.chunk_rows)


def spans(counts: Sequence[int], start: int, stop: int) -> tuple[Span, ...]:
    """Where rows `start` to `stop` of a set are, whose files hold `counts` records."""
    found = []
    first = 0
    for file, count in enumerate(counts):
        low, high = max(start - first, 0), min(stop - first, count)
        if low < high:
            found.append(Span(file, low, high))
        first += count
    return tuple(found)


def chunks(ranges: Sequence[Span], rows: int) -> Iterator[tuple[Span, ...]]:
    """Cuts a range into chunks of at most `rows` rows."""
    chunk: list[Span] = []
    room = rows
    for span in ranges:
        start = span.start
        while start < span.stop:
            taken = min(room, span.stop - start)
            chunk.append(Span(span.file, start, start + taken))
            start, room = start + taken, room - taken
            if not room:
                yield tuple(chunk)
                chunk, room = [], rows
    if chunk:
        yield tuple(chunk)
