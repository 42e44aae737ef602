"""Features of examples that did not change, copied from another feature set instead of computed
again.

Examples are matched by id and content digest, wherever they are in either set. For that both sets
are read once, and 16 bytes and a place of each record are grouped; features are copied from file to
file, and never shuffled. What is left goes the usual way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import xxhash

from transforms.core.errors import InputError
from transforms.core.ids import example_of
from transforms.examples.format import ExampleFormat, InputFile
from transforms.examples.read import read_examples
from transforms.extraction.feature_batch import IDS, PARTS
from transforms.extraction.feature_files import Part
from transforms.runtime import counters
from transforms.storage import feature_manifest, feature_record, filesystems, manifests, tfrecords
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.filesystems import StoredFile

_KEY_BYTES = 16
_BATCH = 1024
# About this many records of the base are matched at once.
_RECORDS_PER_BUCKET = 50_000
_KNOWN = "known"


@dataclasses.dataclass(frozen=True)
class Base:
    """A committed feature set whose records may be copied.

    Attributes:
        directory: where it is.
        fingerprint: its identity.
        examples: how many records it holds.
        per_token: whether a record is a position of an example.
    """

    directory: str
    fingerprint: str
    examples: int
    per_token: bool = False

    @staticmethod
    def of(directory: str, draft: FeatureManifest) -> Base:
        """The set in `directory`, for a set with this draft of a manifest.

        Raises:
            InputError: there is none, or its records are not what would be computed.
        """
        found = manifests.read(directory, FeatureManifest, "base")
        feature_manifest.check_same_extraction(found, draft, directory)
        return Base(directory, found.fingerprint, found.examples, found.per_token)

    def files(self) -> tuple[StoredFile, ...]:
        """Its files.

        Raises:
            InputError: it is not there any more, or another.
        """
        found = manifests.read(self.directory, FeatureManifest, "base")
        if found.fingerprint != self.fingerprint:
            raise InputError(
                f"`base={self.directory!r}` has been replaced since the run was started: start it "
                "again"
            )
        return found.files


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """Records of a file of the base whose examples are in a file of this run, unchanged: rows [n]
    there, offsets [n] here.

    Positions of one example are several rows, ascending, with one offset.
    """

    stored: StoredFile
    rows: np.ndarray
    file: InputFile
    offsets: np.ndarray


def example_key(example_id: bytes, content_digest: bytes) -> bytes:
    """16 bytes that are equal for the same id and content, and for nothing else that ever
    occurs.
    """
    return xxhash.xxh3_128_digest(example_id + b"\0" + content_digest)


def _bucketed(keys: Sequence[bytes], buckets: int) -> Iterator[tuple[int, np.ndarray, bytes]]:
    """The keys by bucket: its number, the places [n] of its keys, and the keys themselves in a
    row.
    """
    array = np.frombuffer(b"".join(keys), "<u8").reshape(len(keys), 2)
    numbers = array[:, 0] % np.uint64(buckets)
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    for bucket, places in zip(
        found, np.split(order, starts[1:]), strict=False
    ):  # of no keys, one empty part
        yield int(bucket), places, array[places].tobytes()


class _DigestDoFn(beam.DoFn):
    """Tells of a file's examples: (bucket, (file, offsets, keys)); and, tagged, (index, (file,
    number of records)).
    """

    def __init__(self, form: ExampleFormat, allow_truncated: bool, buckets: int) -> None:
        # Of inputs and labels nothing is needed, and an example without them is found out when it
        # is extracted.
        self._form = dataclasses.replace(form, inputs=(), labelled=False, keep_keys=())
        self._allow_truncated = allow_truncated
        self._buckets = buckets

    def process(self, file: InputFile) -> Iterator[Any]:
        keys: list[bytes] = []
        offsets: list[np.ndarray] = []
        count = 0
        for batch in read_examples(file, self._form, _BATCH, self._allow_truncated):
            digests = batch.digests.view("V16").ravel().tolist()
            keys += [
                example_key(*pair) for pair in zip(batch.example_ids.tolist(), digests, strict=True)
            ]
            offsets.append(batch.offsets)
            count += len(batch) + len(batch.rejects)
            counters.add("example-bytes-compared", batch.bytes_read)
            counters.add("examples-compared", len(batch) + len(batch.rejects))
        joined_offsets = np.concatenate(offsets)
        for bucket, places, joined in _bucketed(keys, self._buckets):
            yield bucket, (file, joined_offsets[places], joined)
        yield beam.pvalue.TaggedOutput(_KNOWN, (file.index, (file, count)))


def index_base(
    file: StoredFile, base: Base, buckets: int
) -> Iterator[tuple[int, tuple[StoredFile, np.ndarray, bytes]]]:
    """Tells of the records of a file of the base: (bucket, (file, rows, keys))."""
    payloads = tfrecords.split_frames(filesystems.read_verified(base.directory, file))
    text = tf.io.FixedLenFeature([], tf.string)
    parsed = _parsed(payloads, {"example_id": text, "content_digest": text})
    ids = parsed["example_id"].tolist()
    examples = map(example_of, ids) if base.per_token else ids
    keys = [
        example_key(*pair) for pair in zip(examples, parsed["content_digest"].tolist(), strict=True)
    ]
    for bucket, rows, joined in _bucketed(keys, buckets):
        yield bucket, (file, rows, joined)


def match_examples(
    bucket: Iterable[tuple[StoredFile | InputFile, np.ndarray, bytes]],
) -> list[Match]:
    """The matches in a bucket. An example that is there twice is matched once; that its id is used
    twice is found out later.
    """
    elements = list(bucket)
    base: dict[bytes, tuple[StoredFile, list[int]]] = {}
    examples = []
    for owner, places, joined in elements:
        keys = [joined[i : i + _KEY_BYTES] for i in range(0, len(joined), _KEY_BYTES)]
        if isinstance(owner, InputFile):
            examples.append((owner, places, keys))
        else:
            for key, row in zip(keys, places.tolist(), strict=True):
                base.setdefault(key, (owner, []))[1].append(row)
    matches = []
    for file, offsets, keys in sorted(examples, key=lambda example: example[0].index):
        found: dict[StoredFile, tuple[list[int], list[int]]] = {}
        for key, offset in zip(keys, offsets.tolist(), strict=True):
            if key in base:
                stored, its_rows = base.pop(key)
                rows, places_here = found.setdefault(stored, ([], []))
                rows += its_rows
                places_here += [offset] * len(its_rows)
        matches += [
            Match(stored, np.array(rows), file, np.array(places))
            for stored, (rows, places) in found.items()
        ]
    return matches


class _CopyDoFn(beam.DoFn):
    """Copies records of a file of the base: (name, matches) → WrittenPart, and, tagged, what is
    told of ids.
    """

    def __init__(self, base: str, directory: str) -> None:
        self._base = base
        self._directory = directory

    def process(self, element: tuple[str, Iterable[Match]]) -> Iterator[Any]:
        matches = sorted(element[1], key=lambda match: match.file.index)
        payloads = tfrecords.split_frames(filesystems.read_verified(self._base, matches[0].stored))
        # All into one file, so that there are no more files than the base has, however much
        # examples have moved.
        part = Part(matches[0].file, self._directory)
        for match in matches:
            order = np.argsort(match.offsets, kind="stable")
            selected = [payloads[row] for row in match.rows[order]]
            offsets = match.offsets[order]
            copied, example_ids = moved(selected, match.file.path, offsets.tolist())
            part.add(copied, match.file.path, offsets, example_ids)
        counters.add("examples-unchanged", part.examples)
        written = part.finish()
        if written is not None:
            yield written
            yield from part.id_buckets(written)


def moved(
    payloads: Sequence[bytes], source: str, offsets: Sequence[int]
) -> tuple[list[bytes], list[bytes]]:
    """Feature records [n] whose examples are at other places now, with these places; and their ids
    [n].
    """
    text = tf.io.FixedLenFeature([], tf.string)
    parsed = _parsed(
        payloads,
        {"example_id": text, "source": text, "offset": tf.io.FixedLenFeature([], tf.int64)},
    )
    places = zip(parsed["source"].tolist(), parsed["offset"].tolist(), strict=True)
    name = source.encode()
    relocated = [
        payload if was == (name, offset) else feature_record.relocate(payload, source, offset)
        for payload, offset, was in zip(payloads, offsets, places, strict=True)
    ]
    return relocated, parsed["example_id"].tolist()


def _parsed(
    payloads: Sequence[bytes], fields: Mapping[str, tf.io.FixedLenFeature]
) -> dict[str, np.ndarray]:
    """Some fields of feature records."""
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(payloads, tf.string, shape=[len(payloads)]), dict(fields)
        )
    return {name: tensor.numpy() for name, tensor in parsed.items()}


def leave(element: tuple[int, Mapping[str, Iterable[Any]]]) -> Iterator[InputFile]:
    """A file whose examples are not all unchanged, without those that are."""
    _, grouped = element
    ((file, count),) = grouped["files"]
    known = np.unique(np.concatenate([np.empty(0, np.int64), *grouped[_KNOWN]]))
    if len(known) < count:
        yield dataclasses.replace(file, known=known)
    else:
        counters.add("example-bytes-read", file.size)


@dataclasses.dataclass
class FindUnchanged(beam.PTransform):
    """Copies what did not change: InputFile → left: InputFile, parts: WrittenPart, ids: what is
    told of ids.

    Attributes:
        base: the set that is copied from.
        form: how ids are read.
        allow_truncated: whether a file with an unreadable tail is used as far as it goes.
        directory: where copies go.
    """

    base: Base
    form: ExampleFormat
    allow_truncated: bool
    directory: str

    def expand(self, input_files: beam.PCollection) -> Mapping[str, beam.PCollection]:
        buckets = 1 + self.base.examples // _RECORDS_PER_BUCKET
        digest = beam.ParDo(_DigestDoFn(self.form, self.allow_truncated, buckets))
        examples = input_files | "DigestExamples" >> digest.with_outputs(
            _KNOWN, main="keys"
        )  # (bucket, (InputFile, offsets, keys))
        base = (
            input_files.pipeline
            | "NameBase" >> beam.Create([self.base], reshuffle=False)  # Base
            | "ListBaseFiles" >> beam.FlatMap(Base.files)  # StoredFile
            | "SpreadBaseFiles" >> beam.Reshuffle()  # StoredFile
            | "IndexBase"
            >> beam.FlatMap(index_base, self.base, buckets)  # (bucket, (StoredFile, rows, keys))
        )
        matches = (
            (examples["keys"], base)
            | "JoinKeys" >> beam.Flatten()  # (bucket, (StoredFile or InputFile, places, keys))
            | "GroupKeys"
            >> beam.GroupByKey()  # (bucket, [(StoredFile or InputFile, places, keys)])
            | "MatchExamples"
            >> beam.FlatMapTuple(lambda _, bucket: match_examples(bucket))  # Match
        )
        copied = (
            matches
            | "KeyByBaseFile" >> beam.Map(lambda match: (match.stored.name, match))  # (name, Match)
            | "GroupByBaseFile" >> beam.GroupByKey()  # (name, [Match])
            | "CopyRecords"
            >> beam.ParDo(_CopyDoFn(self.base.directory, self.directory)).with_outputs(
                IDS, main=PARTS
            )  # WrittenPart
        )
        known = matches | "KeyByFile" >> beam.Map(
            lambda match: (match.file.index, match.offsets)
        )  # (index, offsets)
        left = (
            {"files": examples[_KNOWN], _KNOWN: known}
            | "GroupByFile"
            >> beam.CoGroupByKey()  # (index, {files: [(InputFile, records)], known: [offsets]})
            | "LeaveUnchanged" >> beam.FlatMap(leave)  # InputFile
        )
        return {"left": left, PARTS: copied[PARTS], IDS: copied[IDS]}
