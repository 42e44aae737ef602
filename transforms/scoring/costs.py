"""What scoring two feature sets costs: tiles, bytes read, arithmetic, memory, and what is shuffled
and written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from transforms.core.shapes import Shape
from transforms.scoring.tiles import FIXED_BYTES, Grid, rows_per_file, test_bytes, train_bytes

# What travels and is written, about: of a candidate and of what is told of a test example, for ids
# of a dozen characters.
SHUFFLED_CANDIDATE_BYTES, SHUFFLED_ROW_BYTES = 32, 40

WRITTEN_CANDIDATE_BYTES, WRITTEN_ROW_BYTES = 83, 190  # JSON line and Parquet


@dataclasses.dataclass(frozen=True)
class FeatureFiles:
    """Files of a feature set that follow each other and are alike: their number, records of each
    (at least 1), bytes of each.
    """

    number: int
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What scoring two feature sets costs, but for test examples that have to be searched again by
    lower thresholds.

    Attributes:
        pairs: test × training examples.
        flops: arithmetic if every pair is multiplied in factored form.
        tiles: how many there are: `test_blocks` × `train_ranges`.
        test_blocks: how many times the training set is read.
        train_ranges: parts of the training set that a tile goes through.
        test_rows, train_rows, chunk_rows: most examples in a block, in a range, and in what is held
            of a range at once.
        chunks: how many are read, over all tiles.
        train_bytes_read: of whole files: one that is cut is read once for each chunk that holds
            some of its records.
        test_bytes_read: likewise of blocks, if neighbouring tiles of a block are scored by one
            process, which keeps it: the first tiles of all blocks come first, and then the others.
        test_bytes_read_at_most: if each tile reads its block.
        memory_bytes: peak of one worker process for scoring; TensorFlow and Beam themselves not
            counted.
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


def predict(
    grid: Grid,
    shape: Shape,
    k: int,
    test_files: Iterable[FeatureFiles],
    train_files: Iterable[FeatureFiles],
) -> Cost:
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
        memory_bytes=FIXED_BYTES
        + test_rows * test_bytes(shape, k)
        + chunk_rows * train_bytes(shape),
        candidates=candidates,
        shuffled_bytes=candidates * SHUFFLED_CANDIDATE_BYTES + tests * ranges * SHUFFLED_ROW_BYTES,
        result_rows=tests,
        result_files=2 * _ceil(tests, file_rows),
        result_bytes=tests * (min(2 * k, trains) * WRITTEN_CANDIDATE_BYTES + WRITTEN_ROW_BYTES),
    )


def _ceil(n: int, divisor: int) -> int:
    return -(-n // divisor)


def pieces(rows: int, outer: int, inner: int) -> int:
    """How many pieces `rows` rows make that are cut at every multiple of `outer`, and within these
    parts every `inner` rows.
    """
    parts, rest = divmod(rows, outer)
    return parts * _ceil(outer, inner) + _ceil(rest, inner)


def _read_in_pieces(files: Iterable[FeatureFiles], outer: int, inner: int) -> tuple[int, int]:
    """How many records files hold, and how many bytes are read of them in pieces as above, each of
    which reads whole files.

    Where several files are given as alike, a cut that meets the border between two of them counts
    as if it went through one.
    """
    first = read = 0
    for alike in files:
        stop = first + alike.number * alike.records
        # A read for each file, and one more for each cut: pieces begun after the first record and
        # before the last one's end.
        read += alike.bytes * (
            alike.number + pieces(stop, outer, inner) - pieces(first + 1, outer, inner)
        )
        first = stop
    return first, read
