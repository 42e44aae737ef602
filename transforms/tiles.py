"""The plan of stage 2: the test × train grid cut into tiles that fit the memory and are worth a worker's while, and what it costs.

A tile is a block of test examples and a range of training examples. The block is held in memory while the range streams through in chunks,
so memory depends on neither set's size. What a tile finds is one block of candidates; the tiles of a test block are merged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

_ROWS_PER_FILE = 10_000
_CANDIDATES_PER_FILE = 2_000_000

# A tile of about this much arithmetic takes some seconds on a core: long against its overhead, short against a worker's life.
TILE_FLOPS = 4e12
# What grows with nothing: blocks of scores, candidates that are not yet sifted, and the file that is being read and decoded.
FIXED_BYTES = 320 << 20
# Memory of a candidate: score, row, id, label; and what merging them holds twice.
CANDIDATE_BYTES = 160

# What travels and is written, about: of a candidate and of what is told of a test example, for ids of a dozen characters.
SHUFFLED_CANDIDATE_BYTES, SHUFFLED_ROW_BYTES = 32, 40
WRITTEN_CANDIDATE_BYTES, WRITTEN_ROW_BYTES = 83, 190  # JSON line and Parquet
# What a record takes in a file beside its arrays, about: the keys, the id, the name of its source, the framing.
_STORED_RECORD_BYTES = 350


def rows_per_file(k: int) -> int:
    """Rows of an output file: 10,000, and fewer from k = 200 on, since a file's rows are written at once. A function of k alone."""
    return max(1, min(_ROWS_PER_FILE, _CANDIDATES_PER_FILE // k))


@dataclasses.dataclass(frozen=True)
class Span:
    """Records `start` to `stop` of the file at place `file` of a feature set's manifest."""

    file: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Tile:
    """A block of test examples and a range of training examples.

    Attributes:
        test_start: row of the block's first example in the test set.
        train_start: row of the range's first example in the training set; at 0, it is the first to be searched.
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
class Shape:
    """Numbers of checkpoints T, outputs C and units D (the trailing 1 of a bias counted)."""

    checkpoints: int
    outputs: int
    units: int

    @property
    def record_bytes(self) -> int:
        """Memory of one record's arrays, its id (at most 512 bytes) and labels."""
        return self.checkpoints * (4 * (self.outputs + self.units) + 20) + 600

    def stored_bytes(self, feature_dtype: str) -> int:
        """What one record takes in a file, about, with arrays of this dtype."""
        return self.checkpoints * ((4 if feature_dtype == "float32" else 2) * (self.outputs + self.units) + 20) + _STORED_RECORD_BYTES

    @property
    def pair_flops(self) -> int:
        """Arithmetic of one pair in factored form, `2 T (C + D)`."""
        return 2 * self.checkpoints * (self.outputs + self.units)


@dataclasses.dataclass(frozen=True)
class Grid:
    """How many test rows a tile's block has, how many training rows its range, and how many of those are held at once."""

    test_rows: int
    train_rows: int
    chunk_rows: int


def choose_grid(
    shape: Shape, tests: int, trains: int, k: int, memory_bytes: float, test_rows: int | None = None, train_rows: int | None = None
) -> Grid:
    """The grid for a memory budget of one tile in work; `test_rows` and `train_rows` are those given by hand, whatever they take.

    Half of what is left after the fixed part is for the test block, half for the training chunks.

    Raises:
        ValueError: not even a few records fit.
    """
    share = (memory_bytes - FIXED_BYTES) / 2
    per_test, per_train = _test_bytes(shape, k), _train_bytes(shape)
    most_tests, most_chunk = int(share // per_test), int(share // per_train)
    if most_tests < 16 or most_chunk < 16:
        needed = (FIXED_BYTES + 32 * max(per_test, per_train)) / 1e9
        raise ValueError(f"{memory_bytes / 1e9:g} GB for one worker process are too little: it needs {needed:.2f} GB")
    planned_tests = even_part(min(tests, rows_per_file(k)), most_tests)
    planned_trains = even_part(trains, max(most_chunk, int(TILE_FLOPS / (shape.pair_flops * max(1, planned_tests)))))
    chunk_rows = even_part(planned_trains, most_chunk)
    return Grid(test_rows or planned_tests, train_rows or planned_trains, min(chunk_rows, train_rows or chunk_rows))


def _test_bytes(shape: Shape, k: int) -> int:
    """Memory of a test example while its block is in work: its record, scaled factors, candidates of both signs."""
    return 2 * shape.record_bytes + shape.checkpoints * 100 + 2 * k * CANDIDATE_BYTES


def _train_bytes(shape: Shape) -> int:
    """Memory of a chunk, by training example.

    Its records, their scaled factors, and the next chunk, whose files are joined while it is read; loss gradients in blocks, with outlines
    of 64 of them, and sketches of 24 numbers a checkpoint, by record and in blocks.
    """
    return 4 * shape.record_bytes + shape.checkpoints * (4 * shape.outputs + 2 * 96 + 32)


def even_part(total: int, most: int) -> int:
    """The size of the fewest equal parts of `total` that are at most `most`; at least 1."""
    return max(1, math.ceil(total / math.ceil(total / most))) if total else 1


def tiles(grid: Grid, test_counts: Sequence[int], train_counts: Sequence[int], file_rows: int) -> Iterator[Tile]:
    """The tiles of two feature sets whose files hold these numbers of records; a test block meets every training example once.

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


@dataclasses.dataclass(frozen=True)
class FeatureFiles:
    """Files of a feature set that follow each other and are alike: their number, records of each (at least 1), bytes of each."""

    number: int
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What scoring two feature sets costs, but for test examples that have to be searched again by lower thresholds.

    Attributes:
        pairs: test × training examples.
        flops: arithmetic if every pair is multiplied in factored form.
        tiles: how many there are: `test_blocks` × `train_ranges`.
        test_blocks: how many times the training set is read.
        train_ranges: parts of the training set that a tile goes through.
        test_rows, train_rows, chunk_rows: most examples in a block, in a range, and in what is held of a range at once.
        chunks: how many are read, over all tiles.
        train_bytes_read: of whole files: one that is cut is read once for each chunk that holds some of its records.
        test_bytes_read: likewise of blocks, if neighbouring tiles of a block are scored by one process, which keeps it: the first tiles of
            all blocks come first, and then the others.
        test_bytes_read_at_most: if each tile reads its block.
        memory_bytes: peak of one worker process for scoring; TensorFlow and Beam themselves not counted.
        candidates: that leave the tiles, at most.
        shuffled_bytes: of these candidates, about.
        result_rows, result_files: rows, and files that hold them, JSON lines and Parquet.
        result_bytes: of these files, about.
    """

    pairs: int
    flops: int
    tiles: int
    test_blocks: int
    train_ranges: int
    test_rows: int
    train_rows: int
    chunk_rows: int
    chunks: int
    train_bytes_read: int
    test_bytes_read: int
    test_bytes_read_at_most: int
    memory_bytes: int
    candidates: int
    shuffled_bytes: int
    result_rows: int
    result_files: int
    result_bytes: int


def predict(grid: Grid, shape: Shape, k: int, test_files: Iterable[FeatureFiles], train_files: Iterable[FeatureFiles]) -> Cost:
    """What the tiles of a grid cost, of two feature sets in these files.

    Counted, not walked through, so that any number of tiles is answered at once.
    """
    file_rows = rows_per_file(k)
    tests, block_bytes = _read_in_pieces(test_files, file_rows, grid.test_rows)
    trains, pass_bytes = _read_in_pieces(train_files, grid.train_rows, grid.chunk_rows)
    blocks, ranges = pieces(tests, file_rows, grid.test_rows), _ceil(trains, grid.train_rows)
    test_rows, train_rows = min(grid.test_rows, file_rows, tests), min(grid.train_rows, trains)
    chunk_rows = min(grid.chunk_rows, train_rows)
    # A training example is a proponent of a test example or an opponent, not both.
    whole, rest = divmod(trains, grid.train_rows)
    candidates = tests * (whole * min(2 * k, grid.train_rows) + min(2 * k, rest))
    return Cost(
        pairs=tests * trains,
        flops=tests * trains * shape.pair_flops,
        tiles=blocks * ranges,
        test_blocks=blocks,
        train_ranges=ranges,
        test_rows=test_rows,
        train_rows=train_rows,
        chunk_rows=chunk_rows,
        chunks=blocks * pieces(trains, grid.train_rows, grid.chunk_rows),
        train_bytes_read=blocks * pass_bytes,
        test_bytes_read=block_bytes * (0 if not trains else 1 if blocks == 1 or ranges == 1 else 2),
        test_bytes_read_at_most=ranges * block_bytes,
        memory_bytes=FIXED_BYTES + test_rows * _test_bytes(shape, k) + chunk_rows * _train_bytes(shape),
        candidates=candidates,
        shuffled_bytes=candidates * SHUFFLED_CANDIDATE_BYTES + tests * ranges * SHUFFLED_ROW_BYTES,
        result_rows=tests,
        result_files=2 * _ceil(tests, file_rows),
        result_bytes=tests * (min(2 * k, trains) * WRITTEN_CANDIDATE_BYTES + WRITTEN_ROW_BYTES),
    )


def _ceil(n: int, divisor: int) -> int:
    return -(-n // divisor)


def pieces(rows: int, outer: int, inner: int) -> int:
    """How many pieces `rows` rows make that are cut at every multiple of `outer`, and within these parts every `inner` rows."""
    parts, rest = divmod(rows, outer)
    return parts * _ceil(outer, inner) + _ceil(rest, inner)


def _read_in_pieces(files: Iterable[FeatureFiles], outer: int, inner: int) -> tuple[int, int]:
    """How many records files hold, and how many bytes are read of them in pieces as above, each of which reads whole files.

    Where several files are given as alike, a cut that meets the border between two of them counts as if it went through one.
    """
    first = read = 0
    for alike in files:
        stop = first + alike.number * alike.records
        # A read for each file, and one more for each cut: pieces begun after the first record and before the last one's end.
        read += alike.bytes * (alike.number + pieces(stop, outer, inner) - pieces(first + 1, outer, inner))
        first = stop
    return first, read
