"""The cost of scoring two feature sets: tiles, bytes read, arithmetic, memory, bytes shuffled and
written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from transforms.scoring.tiles import Footprint, Grid, rows_per_file, train_ranges

# About so many bytes travel of a candidate and of a test example, for ids of a dozen characters.
_SHUFFLED_CANDIDATE_BYTES, _SHUFFLED_ROW_BYTES = 32, 40

# About so many are written, as a JSON line and in Parquet.
_WRITTEN_CANDIDATE_BYTES, _WRITTEN_ROW_BYTES = 83, 190


@dataclasses.dataclass(frozen=True)
class FeatureFiles:
    """Consecutive files of a feature set that are alike: their number, records of each (at least
    1), bytes of each.
    """

    number: int
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of scoring two feature sets, without test examples that have to be searched again by
    lower thresholds.

    Attributes:
        pairs: test × training examples.
        flops: arithmetic if every pair is multiplied.
        tiles: their number, `test_blocks` × `train_ranges`.
        test_blocks: how many times the training set is read.
        train_ranges: parts of the training set, one for each tile of a block.
        test_rows, train_rows, chunk_rows: most examples of a block, of a range, and of a chunk.
        chunks: chunks read, over all tiles.
        train_bytes_read: of whole files; a file that is cut is read once for each chunk that holds
            some of its records.
        test_bytes_read: likewise of blocks, if neighbouring tiles of a block are scored by one
            process, which keeps it: the first tiles of all blocks come first, and then the others.
        test_bytes_read_at_most: if each tile reads its block.
        memory_bytes: peak of one worker process for scoring, without TensorFlow and Beam.
        candidates: those that leave the tiles, at most.
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
    footprint: Footprint,
    test_files: Iterable[FeatureFiles],
    train_files: Iterable[FeatureFiles],
) -> Cost:
    """Predicts the cost of a grid's tiles between the records of two feature sets in these files.

    Tiles are counted, not walked through, so that any number of them is answered at once.
    """
    file_rows = rows_per_file(footprint.k)
    tests, block_bytes = _read_in_pieces(test_files, file_rows, grid.test_rows)
    trains, pass_bytes = _read_in_pieces(train_files, grid.train_rows, grid.chunk_rows)
    blocks, ranges = pieces(tests, file_rows, grid.test_rows), _ceil(trains, grid.train_rows)
    train_rows = min(grid.train_rows, trains)
    whole, rest = divmod(trains, grid.train_rows)
    most = 2 * footprint.k
    return _cost(
        dataclasses.replace(
            grid,
            test_rows=min(grid.test_rows, file_rows, tests),
            train_rows=train_rows,
            chunk_rows=min(grid.chunk_rows, train_rows),
        ),
        footprint,
        tests,
        trains,
        blocks,
        ranges,
        chunks=blocks * pieces(trains, grid.train_rows, grid.chunk_rows),
        train_bytes_read=blocks * pass_bytes,
        test_bytes_read=block_bytes * (0 if not trains else 1 if blocks == 1 or ranges == 1 else 2),
        test_bytes_read_at_most=ranges * block_bytes,
        # A training example is a proponent of a test example or an opponent, not both.
        candidates=tests * (whole * min(most, grid.train_rows) + min(most, rest)),
    )


def predict_summed(
    grid: Grid,
    footprint: Footprint,
    tests: int,
    trains: int,
    test_files: Sequence[FeatureFiles],
    train_files: Sequence[FeatureFiles],
) -> Cost:
    """Predicts the cost of a grid's tiles between so many examples, whose records in these files
    are positions.

    The borders of test blocks in their files are unknown, so each is taken to cut a file.
    """
    file_rows = rows_per_file(footprint.k)
    blocks = pieces(tests, file_rows, grid.test_rows)
    counts = [alike.records for alike in train_files for _ in range(alike.number)]
    ranges = [sum(map(len, spans)) for spans in train_ranges(grid, counts, trains)]
    train_rows = [math.ceil(positions * trains / sum(counts)) for positions in ranges]
    test_bytes, train_bytes = (
        sum(alike.number * alike.bytes for alike in files) for files in (test_files, train_files)
    )
    cut = max(0, blocks - 1) * max((alike.bytes for alike in test_files), default=0)
    return _cost(
        Grid(
            min(grid.test_rows, file_rows, tests),
            max(train_rows, default=0),
            min(grid.chunk_rows, trains),
        ),
        footprint,
        tests,
        trains,
        blocks,
        len(ranges),
        chunks=blocks * sum(math.ceil(rows / grid.chunk_rows) for rows in train_rows),
        train_bytes_read=blocks * train_bytes,
        # Once to count the positions.
        test_bytes_read=2 * test_bytes + cut,
        test_bytes_read_at_most=test_bytes + len(ranges) * (test_bytes + cut),
        candidates=tests * sum(min(2 * footprint.k, rows) for rows in train_rows),
    )


def _cost(
    largest: Grid,
    footprint: Footprint,
    tests: int,
    trains: int,
    blocks: int,
    ranges: int,
    *,
    candidates: int,
    **reads: int,
) -> Cost:
    """Returns the cost of tiles of which `largest` is the largest."""
    return Cost(
        pairs=tests * trains,
        flops=tests * trains * footprint.pair_flops,
        tiles=blocks * ranges,
        test_blocks=blocks,
        train_ranges=ranges,
        test_rows=largest.test_rows,
        train_rows=largest.train_rows,
        chunk_rows=largest.chunk_rows,
        memory_bytes=footprint.memory_bytes(largest.test_rows, largest.chunk_rows),
        candidates=candidates,
        shuffled_bytes=candidates * _SHUFFLED_CANDIDATE_BYTES
        + tests * ranges * _SHUFFLED_ROW_BYTES,
        result_rows=tests,
        result_files=2 * _ceil(tests, rows_per_file(footprint.k)),
        result_bytes=tests
        * (min(2 * footprint.k, trains) * _WRITTEN_CANDIDATE_BYTES + _WRITTEN_ROW_BYTES),
        **reads,
    )


def _ceil(n: int, divisor: int) -> int:
    return -(-n // divisor)


def pieces(rows: int, outer: int, inner: int) -> int:
    """Returns the number of pieces of `rows` rows that are cut at every multiple of `outer`, and
    within these parts every `inner` rows.
    """
    parts, rest = divmod(rows, outer)
    return parts * _ceil(outer, inner) + _ceil(rest, inner)


def _read_in_pieces(files: Iterable[FeatureFiles], outer: int, inner: int) -> tuple[int, int]:
    """Returns the number of records of files, and the bytes that pieces as above read of them, each
    of whole files.

    A cut at the border between two files that are alike counts as if it went through one.
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
