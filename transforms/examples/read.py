"""Files of examples read into fixed-size batches of arrays, with everything unusable set aside."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import IO, Any

import apache_beam as beam

from transforms.core.errors import InputError
from transforms.examples import rejects
from transforms.examples.batch import ExampleBatch
from transforms.examples.format import ExampleFormat, InputFile
from transforms.examples.parse_batch import BatchParser
from transforms.examples.rejects import Reject
from transforms.examples.tables import ARCHIVE_MAGIC, PARQUET_MAGIC, read_archive, read_parquet
from transforms.runtime import counters
from transforms.runtime.prefetch import prefetch
from transforms.storage import filesystems
from transforms.storage.tfrecords import UnreadableTail, read_frames


def _records(stream: IO[bytes]) -> Iterator[list[bytes | None]]:
    """The records of a file, whose kind its first bytes tell; None for one whose checksum is
    wrong.
    """
    head = stream.read(4)
    stream.seek(0)
    return {PARQUET_MAGIC: read_parquet, ARCHIVE_MAGIC: read_archive}.get(head, read_frames)(stream)


def _runs(
    payloads: list[bytes | None], start: int, known: Collection[int]
) -> Iterator[tuple[list[Any], Sequence[int]]]:
    """Runs of records that are read, with their places, of which the first is `start`; a damaged
    one is by itself.
    """
    if not known and None not in payloads:
        yield payloads, range(start, start + len(payloads))
        return
    for place, payload in enumerate(payloads, start):
        if payload is None or place not in known:
            yield [payload], [place]


def read_examples(
    file: InputFile, form: ExampleFormat, batch_size: int, allow_truncated: bool
) -> Iterator[ExampleBatch]:
    """Reads a file of examples as batches of `batch_size` records (fewer where some are set aside,
    and at the end).

    Raises:
        InputError: the file's tail cannot be read and `allow_truncated` is false.
    """
    parser = BatchParser(form, file)
    known = frozenset(() if file.known is None else file.known.tolist())
    serialized: list[bytes] = []
    offsets: list[int] = []
    aside: list[Reject] = []
    position, first = 0, True
    with filesystems.open_raw(file.path) as stream:

        def batch(last: bool) -> ExampleBatch:
            nonlocal serialized, offsets, aside, position, first
            reached = file.size if last else stream.tell()
            parsed = parser.parse(serialized, offsets)
            found = sorted(aside + parsed.rejects, key=lambda reject: reject.offset)
            parsed = dataclasses.replace(
                parsed, rejects=found, first=first, last=last, bytes_read=reached - position
            )
            serialized, offsets, aside, position, first = [], [], [], reached, False
            return parsed

        reached = 0
        try:
            for payloads in _records(stream):
                for run, places in _runs(payloads, reached, known):
                    if run[0] is None:
                        detail = "the record's checksum does not match its content"
                        aside.append(
                            Reject(file.path, places[0], None, rejects.BAD_CHECKSUM, detail)
                        )
                        continue
                    while run:
                        if len(serialized) == batch_size:
                            yield batch(last=False)
                        room = batch_size - len(serialized)
                        serialized += run[:room]
                        offsets += places[:room]
                        run, places = run[room:], places[room:]
                reached += len(payloads)
        except UnreadableTail as error:
            if not allow_truncated or error.is_no_record:
                hint = (
                    "is it a TFRecord, Parquet or .npz file?"
                    if error.is_no_record
                    else "write the file again, or accept the loss with `allow_truncated_files`"
                )
                raise InputError(
                    f"{file.path}: the file cannot be read from record {error.index} at byte "
                    f"{error.offset} on ({error.reason}), "
                    f"and nobody knows how many records that is: {hint}"
                ) from error
            aside.append(
                Reject(
                    file.path,
                    error.index,
                    None,
                    rejects.UNREADABLE_TAIL,
                    f"from byte {error.offset} on: {error.reason}",
                )
            )
        yield batch(last=True)


def records_at(path: str, offsets: Collection[int]) -> dict[int, bytes]:
    """The readable records of a file at some places, by place."""
    last = max(offsets, default=-1)
    return {place: payload for place, payload in _readable(path, last + 1) if place in offsets}


def first_records(file: InputFile, n: int) -> list[bytes]:
    """The first readable records of a file, at most n."""
    return [payload for _, payload in islice(_readable(file.path), n)]


def _readable(path: str, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The readable records of a file, up to some place or all, with their places."""
    place = 0
    with filesystems.open_raw(path) as stream, contextlib.suppress(UnreadableTail):
        for payloads in _records(stream):
            for payload in payloads:
                if place == stop:
                    return
                if payload is not None:
                    yield place, payload
                place += 1


@dataclasses.dataclass
class ReadExamples(beam.PTransform):
    """Reads files of examples as batches, file by file: InputFile → ExampleBatch."""

    form: ExampleFormat
    batch_size: int
    allow_truncated: bool = False

    def _read(self, file: InputFile) -> Iterator[ExampleBatch]:
        for batch in prefetch(
            read_examples(file, self.form, self.batch_size, self.allow_truncated)
        ):
            counters.add("examples-read", len(batch) + len(batch.rejects))
            counters.add("example-bytes-read", batch.bytes_read)
            yield batch

    def expand(self, input_files: beam.PCollection) -> beam.PCollection:
        return input_files | "ReadFiles" >> beam.FlatMap(self._read)  # ExampleBatch
