"""Tiles: the test × train grid, cut so that a tile fits the memory and is worth a worker's while.

A tile is a test block × a training range. The block is held in memory while the range streams
through in chunks, so memory depends on neither set's size. A tile yields one block of candidates;
the tiles of a test block are merged.

Examples are records; or, where scores are sums over positions, examples whose records are their
positions. Then borders fall between examples: those of a test block are known once the positions of
the test examples are counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from transforms.core.shapes import Shape, Span

# Rows and candidates of an output file, at most: it is written at once, from memory.
_ROWS_PER_FILE, _CANDIDATES_PER_FILE = 10_000, 2_000_000

# A tile of about this much arithmetic takes some seconds on a core: long against its overhead,
# short against a worker's life.
_TILE_FLOPS = 4e12

# Memory that grows with nothing: blocks of scores, candidates that are not yet sifted, and the file
# that is being read and decoded.
_FIXED_BYTES = 320 << 20

# Memory of a candidate: score, row, id and label; some of them twice while they are merged.
_CANDIDATE_BYTES = 160

# Memory of an example besides its gradient: its id, at most 512 bytes, and the fields of its row.
_EXAMPLE_BYTES = 700


def rows_per_file(k: int) -> int:
    """Returns the number of rows of an output file: 10,000, and fewer above k = 200. A function of
    k alone.
    """
    return max(1, min(_ROWS_PER_FILE, _CANDIDATES_PER_FILE // k))


@dataclasses.dataclass(frozen=True)
class Tile:
    """A test block × a training range: one unit of work.

    Attributes:
        test_start: row of the block's first example among the test set's examples.
        train_start: number of training records before the range; the tile at 0 is the first of
            its block to be searched.
        tests: spans of the block's records.
        trains: spans of the range's records.
        chunk_rows: number of training examples that are held at once.
        test_rows: number of test examples of the block.
    """

    test_start: int
    train_start: int
    tests: tuple[Span, ...]
    trains: tuple[Span, ...]
    chunk_rows: int
    test_rows: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """Numbers of test examples of a block, of training examples of a range, and of training
    examples that are held at once.
    """

    test_rows: int
    train_rows: int
    chunk_rows: int


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Memory and arithmetic that examples take while they are scored.

    Attributes:
        k: number of proponents and opponents of each test example.
        test_bytes: memory of a test example while its block is in work.
        train_bytes: memory of a training example of a chunk.
        fixed_bytes: memory that grows with neither.
        pair_flops: arithmetic of one pair.
        fewest: smallest test block and chunk; smaller ones would be read again and again.
        most_chunk: largest chunk, or None for any.
        even_chunks: whether a range is cut into chunks of equal size, since its size is known.
        note: what is large, for the message about too little memory.
    """

    k: int
    test_bytes: int
    train_bytes: int
    fixed_bytes: int
    pair_flops: int
    fewest: int
    most_chunk: int | None = None
    even_chunks: bool = True
    note: str = ""

    def memory_bytes(self, test_rows: int, chunk_rows: int) -> int:
        """Returns the peak memory of a worker process with such blocks and chunks."""
        return self.fixed_bytes + test_rows * self.test_bytes + chunk_rows * self.train_bytes


def record_footprint(shape: Shape, k: int) -> Footprint:
    """Returns the footprint of scores between records.

    A test example takes its record twice, scaled factors, and candidates of both signs. A training
    example takes its record, its scaled factors, and as much for the next chunk, whose files are
    joined while it is read; and the loss gradients laid out in columns with outlines and with
    sketches of 24 numbers a checkpoint.
    """
    return Footprint(
        k=k,
        test_bytes=2 * shape.record_bytes + shape.checkpoints * 100 + 2 * k * _CANDIDATE_BYTES,
        train_bytes=4 * shape.record_bytes + shape.checkpoints * (4 * shape.outputs + 2 * 96 + 32),
        fixed_bytes=_FIXED_BYTES,
        pair_flops=shape.pair_flops,
        fewest=16,
    )


def gradient_footprint(shape: Shape, k: int, largest_file: int, usual_file: int) -> Footprint:
    """Returns the footprint of scores between whole gradients of T·C·D numbers.

    A test example takes its gradient in float64 and in float32, and candidates of both signs; a
    training example the same of its gradient, and the next chunk's in float64. A file larger than
    usual, in bytes, is read, cut into records and parsed: four times its size.
    """
    vector = vector_bytes(shape)
    extra = 4 * max(0, largest_file - usual_file)
    more = f" and a file of {extra / 4e9:.2f} GB more than others" if extra else ""
    return Footprint(
        k=k,
        test_bytes=vector * 3 // 2 + _EXAMPLE_BYTES + 2 * k * _CANDIDATE_BYTES,
        train_bytes=vector * 5 // 2 + 3 * _EXAMPLE_BYTES,
        fixed_bytes=_FIXED_BYTES + extra,
        pair_flops=vector // 4,
        fewest=4,
        # Products with all test examples of a group are held.
        most_chunk=8192,
        even_chunks=False,
        note=f" for gradients of {shape.checkpoints} × {shape.outputs} × {shape.units} "
        f"numbers{more}",
    )


def vector_bytes(shape: Shape) -> int:
    """Returns the memory of an example's gradient, T·C·D numbers in float64."""
    return 8 * shape.checkpoints * shape.outputs * shape.units


def choose_grid(
    footprint: Footprint,
    tests: int,
    trains: int,
    memory_bytes: float,
    test_rows: int | None = None,
    train_rows: int | None = None,
) -> Grid:
    """Chooses the grid for a memory budget of one tile in work.

    Half of the memory that the fixed part leaves is for the test block, half for the training
    chunks. `test_rows` and `train_rows` replace the chosen ones, whatever they take.

    Raises:
        ValueError: not even the smallest block and chunk fit.
    """
    share = (memory_bytes - footprint.fixed_bytes) / 2
    most_tests, most_chunk = int(share // footprint.test_bytes), int(share // footprint.train_bytes)
    if footprint.most_chunk is not None:
        most_chunk = min(footprint.most_chunk, most_chunk)
    if min(most_tests, most_chunk) < footprint.fewest:
        largest = max(footprint.test_bytes, footprint.train_bytes)
        needed = (footprint.fixed_bytes + 2 * footprint.fewest * largest) / 1e9
        raise ValueError(
            f"{memory_bytes / 1e9:g} GB for one worker process are too little{footprint.note}: "
            f"it needs {needed:.2f} GB"
        )
    planned_tests = even_part(min(tests, rows_per_file(footprint.k)), most_tests)
    worthwhile = int(_TILE_FLOPS / (footprint.pair_flops * planned_tests))
    planned_trains = even_part(trains, max(most_chunk, worthwhile))
    if footprint.even_chunks:
        chunk_rows = even_part(planned_trains, most_chunk)
        chunk_rows = min(chunk_rows, train_rows or chunk_rows)
    else:
        chunk_rows = min(most_chunk, planned_trains)
    return Grid(test_rows or planned_tests, train_rows or planned_trains, chunk_rows)


def even_part(total: int, most: int) -> int:
    """Returns the size of the fewest equal parts of `total` that are at most `most`; at least 1."""
    return max(1, math.ceil(total / math.ceil(total / most))) if total else 1


def cut_test_blocks(tests: int, block_rows: int, file_rows: int) -> Iterator[tuple[int, int]]:
    """Cuts test examples into blocks, (start, stop) each.

    Blocks do not cross the borders of output files, which have `file_rows` rows.
    """
    for first in range(0, tests, file_rows):
        last = min(first + file_rows, tests)
        for start in range(first, last, block_rows):
            yield start, min(start + block_rows, last)


def record_tiles(
    grid: Grid, test_counts: Sequence[int], train_counts: Sequence[int], file_rows: int
) -> Iterator[Tile]:
    """Returns the tiles between the records of two feature sets, whose files hold these numbers of
    records; a test block meets every training record once.
    """
    trains = sum(train_counts)
    for start, stop in cut_test_blocks(sum(test_counts), grid.test_rows, file_rows):
        block = spans(test_counts, start, stop)
        for first in range(0, trains, grid.train_rows):
            rows = spans(train_counts, first, min(first + grid.train_rows, trains))
            yield Tile(start, first, block, rows, grid.chunk_rows, stop - start)


def position_tiles(
    grid: Grid,
    positions: Sequence[np.ndarray],
    train_counts: Sequence[int],
    train_examples: int,
    file_rows: int,
) -> Iterator[Tile]:
    """Returns the tiles between the examples of two feature sets whose records are positions; a
    test block meets every training example once.

    `positions` are the numbers of positions of the examples of each test file. The training files
    hold `train_counts` records, of `train_examples` examples in all; see `train_ranges`.
    """
    borders = [np.concatenate([[0], np.cumsum(sizes)]).tolist() for sizes in positions]
    counts = [len(sizes) for sizes in positions]
    ranges = list(train_ranges(grid, train_counts, train_examples))
    for start, stop in cut_test_blocks(sum(counts), grid.test_rows, file_rows):
        block = tuple(
            Span(span.file, borders[span.file][span.start], borders[span.file][span.stop])
            for span in spans(counts, start, stop)
        )
        first = 0
        for trains in ranges:
            yield Tile(start, first, block, trains, grid.chunk_rows, stop - start)
            first += sum(map(len, trains))


def train_ranges(grid: Grid, counts: Sequence[int], examples: int) -> Iterator[tuple[Span, ...]]:
    """Cuts training files that hold `counts` positions, of so many examples in all, into ranges.

    A range is of whole files, which end between examples, so the training set need not be read to
    be cut. It has the fewest files that hold, at the set's mean number of positions, as many
    examples as the grid says.
    """
    enough = grid.train_rows * sum(counts) / max(1, examples)
    files: list[Span] = []
    for file, count in enumerate(counts):
        if count:
            files.append(Span(file, 0, count))
        if files and sum(map(len, files)) >= enough:
            yield tuple(files)
            files = []
    if files:
        yield tuple(files)


def spans(counts: Sequence[int], start: int, stop: int) -> tuple[Span, ...]:
    """Returns the spans of rows `start` to `stop` of a set, whose files hold `counts` records."""
    parts = []
    first = 0
    for file, count in enumerate(counts):
        low, high = max(start - first, 0), min(stop - first, count)
        if low < high:
            parts.append(Span(file, low, high))
        first += count
    return tuple(parts)


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
