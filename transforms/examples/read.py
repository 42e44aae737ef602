"""Files of examples read as batches of arrays, with the rejects among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

import apache_beam as beam

from transforms.core.errors import InputError
from transforms.examples import rejects
from transforms.examples.batch import ExampleBatch
from transforms.examples.format import ExampleFormat, InputFile
from transforms.examples.parse_batch import BatchParser
from transforms.examples.records import read_records
from transforms.examples.rejects import Reject
from transforms.runtime import counters
from transforms.runtime.prefetch import prefetch
from transforms.storage import filesystems
from transforms.storage.records.tfrecords import UnreadableTail


@dataclasses.dataclass
class ReadExamples(beam.PTransform):
    """Reads files of examples as batches, file by file: InputFile → ExampleBatch.

    Attributes:
        form: where an example's parts are.
        batch_size: records of a batch.
        allow_truncated: whether a file with an unreadable tail is used as far as it goes.
    """

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


def read_examples(
    file: InputFile, form: ExampleFormat, batch_size: int, allow_truncated: bool
) -> Iterator[ExampleBatch]:
    """Reads a file of examples as batches of `batch_size` records, the last of them marked.

    A batch has fewer examples where records are rejected, and at the end of the file. A file
    without records gives one empty batch.

    Raises:
        InputError: the file's tail cannot be read and `allow_truncated` is false.
    """
    known = frozenset(() if file.known is None else file.known.tolist())
    with filesystems.open_raw(file.path) as stream:
        batches = _Batches(file, form, batch_size, stream)
        start = 0
        try:
            for payloads in read_records(stream):
                for run, offsets in _runs(payloads, start, known):
                    if run[0] is None:
                        detail = "the record's checksum does not match its content"
                        batches.reject(offsets[0], rejects.BAD_CHECKSUM, detail)
                    else:
                        yield from batches.add(run, offsets)
                start += len(payloads)
        except UnreadableTail as error:
            if not allow_truncated or error.is_no_record:
                raise _unreadable(file, error) from error
            detail = f"from byte {error.offset} on: {error.reason}"
            batches.reject(error.index, rejects.UNREADABLE_TAIL, detail)
        yield batches.parse(last=True)


class _Batches:
    """Collects records of a file until they are a batch."""

    def __init__(
        self, file: InputFile, form: ExampleFormat, batch_size: int, stream: IO[bytes]
    ) -> None:
        self._file = file
        self._batch_size = batch_size
        self._stream = stream
        self._parser = BatchParser(form, file)
        self._first = True
        # How far the stored file was read for the batches so far, in bytes.
        self._bytes_read = 0
        self._serialized: list[bytes] = []
        self._offsets: list[int] = []
        self._rejects: list[Reject] = []

    def add(self, run: list[bytes], offsets: Sequence[int]) -> Iterator[ExampleBatch]:
        """Adds records; yields the full batches before the last of them, which may end the file."""
        while run:
            if len(self._serialized) == self._batch_size:
                yield self.parse(last=False)
            room = self._batch_size - len(self._serialized)
            self._serialized += run[:room]
            self._offsets += offsets[:room]
            run, offsets = run[room:], offsets[room:]

    def reject(self, offset: int, reason: str, detail: str) -> None:
        """Rejects a record that cannot be read."""
        self._rejects.append(Reject(self._file.path, offset, None, reason, detail))

    def parse(self, last: bool) -> ExampleBatch:
        """Parses what is collected, and begins the next batch."""
        reached = self._file.size if last else self._stream.tell()
        batch = self._parser.parse(self._serialized, self._offsets)
        batch = dataclasses.replace(
            batch,
            rejects=sorted(self._rejects + batch.rejects, key=lambda reject: reject.offset),
            first=self._first,
            last=last,
            bytes_read=reached - self._bytes_read,
        )
        self._serialized, self._offsets, self._rejects = [], [], []
        self._first, self._bytes_read = False, reached
        return batch


def _runs(
    payloads: list[bytes | None], start: int, known: Collection[int]
) -> Iterator[tuple[list[Any], Sequence[int]]]:
    """Yields runs of records that are not `known`, with their offsets, the first being `start`.

    A damaged record, which is None, is a run by itself.
    """
    if not known and None not in payloads:
        yield payloads, range(start, start + len(payloads))
        return
    for offset, payload in enumerate(payloads, start):
        if payload is None or offset not in known:
            yield [payload], [offset]


def _unreadable(file: InputFile, error: UnreadableTail) -> InputError:
    hint = (
        "is it a TFRecord, Parquet or .npz file?"
        if error.is_no_record
        else "write the file again, or accept the loss with `allow_truncated_files`"
    )
    return InputError(
        f"{file.path}: the file cannot be read from record {error.index} at byte {error.offset} on "
        f"({error.reason}), and nobody knows how many records that is: {hint}"
    )
