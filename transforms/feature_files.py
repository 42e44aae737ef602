"""Feature files: written part by part, taken over from an attempt that died, and committed as a set.

Only small things are grouped: what each written file holds, and a hash of each id.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms import attempts, counting, files, manifest, records, rejects, tfrecords
from transforms.attempts import WrittenPart
from transforms.errors import InputError
from transforms.examples import InputFile
from transforms.files import StoredFile
from transforms.manifest import BYTES_PER_FILE, RECORDS_PER_FILE, FeatureManifest
from transforms.records import Features, Origin
from transforms.rejects import Reject

# Outputs of the steps that find or write parts.
PARTS, IDS = "parts", "ids"

_ID_BUCKETS = 64
_TOLD_REPEATS = 5

_Step = TypeVar("_Step", bound=beam.PTransform)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of up to a batch of examples of one file, in order, and what was set aside among them; fields as in `ExampleBatch`."""

    file: InputFile
    features: Features
    origins: list[Origin]
    rejects: list[Reject]
    first: bool
    last: bool


NO_FEATURES = Features.of([], np.empty((0, 1)), np.empty((0, 1)), np.empty(0), np.empty((0, 0)), np.empty((0, 0, 0)), np.empty((0, 0, 0)))


def id_hash(example_id: bytes) -> int:
    """64 bits of an id; equal for two different ids once in a very long while."""
    return int.from_bytes(hashlib.blake2b(example_id, digest_size=8).digest(), "little")


def id_buckets(file: StoredFile, hashes: Sequence[int]) -> Iterator[beam.pvalue.TaggedOutput]:
    """What `repeated_hashes` is told of a feature file."""
    array = np.array(hashes, np.uint64)
    for bucket in range(_ID_BUCKETS):
        (rows,) = np.nonzero(array % _ID_BUCKETS == bucket)
        if len(rows):
            yield beam.pvalue.TaggedOutput(IDS, (bucket, (file.name, rows.astype(np.int32), array[rows])))


class _FindFinishedDoFn(beam.DoFn):
    def __init__(self, directory: str, attempt: str) -> None:
        self._directory = directory
        self._attempt = attempt

    def process(self, file: InputFile) -> Iterator[Any]:
        found = attempts.finished(self._directory, self._attempt, file)
        if found is None:
            yield file
            return
        counting.add("example-bytes-read", file.size)
        for part, ids in found:
            counting.add("examples-reused", part.examples + sum(part.reasons.values()))
            yield beam.pvalue.TaggedOutput(PARTS, part)
            if part.features:
                yield from id_buckets(part.features, [id_hash(example_id) for example_id in ids])


@dataclasses.dataclass
class FindFinished(beam.PTransform):
    """Takes over what an earlier attempt has finished: InputFile → left: InputFile, parts: WrittenPart, ids: what `id_buckets` tells."""

    directory: str
    attempt: str

    def expand(self, input_files: beam.PCollection) -> Mapping[str, beam.PCollection]:
        find = beam.ParDo(_FindFinishedDoFn(self.directory, self.attempt))
        found = input_files | "FindFinished" >> find.with_outputs(PARTS, IDS, main="left")
        return {tag: found[tag] for tag in ("left", PARTS, IDS)}


class Part:
    """A feature file in the making, and what is set aside beside it."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.start: int | None = None
        self.payloads: list[bytes] = []
        self.size = 0
        self.hashes: list[int] = []
        self.rejects: list[Reject] = []
        self.examples = 0
        self._last: tuple[str, int] | None = None

    def add(self, payload: bytes, source: str, offset: int, example_id: bytes) -> None:
        """Adds a record of the example at this place, after all others of the same."""
        if self._last != (source, offset):
            self.examples += 1
            self._last = source, offset
        self.start = offset if self.start is None else self.start
        self.payloads.append(payload)
        self.size += len(payload) + 16
        self.hashes.append(id_hash(example_id))

    def ends_before(self, source: str, offset: int) -> bool:
        """Whether it is full and what comes next is another example, whose records belong into one file."""
        return self.is_full and self._last != (source, offset)

    @property
    def is_full(self) -> bool:
        """Whether it is as large as files become."""
        return len(self.payloads) >= RECORDS_PER_FILE or len(self.rejects) >= RECORDS_PER_FILE or self.size >= BYTES_PER_FILE

    def write(self, directory: str) -> WrittenPart | None:
        """Writes it, unless there is nothing in it."""
        if not self.payloads and not self.rejects:
            return None
        start = self.start if self.start is not None else self.rejects[0].offset
        stem = f"{self.file.index:05d}-{start:010d}-{uuid.uuid4().hex[:8]}"
        ordered = sorted(self.rejects, key=lambda reject: reject.offset)
        written = set_aside = None
        if self.payloads:
            written = files.write(directory, f"features-{stem}.tfrecord", tfrecords.join_frames(self.payloads), len(self.payloads))
            counting.add("feature-bytes-written", written.size)
        if ordered:
            set_aside = files.write(directory, f"rejected-{stem}.jsonl", rejects.to_jsonl(ordered), len(ordered))
        reasons = rejects.count_reasons(self.rejects)
        return WrittenPart((self.file.index, start), written, set_aside, self.examples, reasons, ordered[0] if ordered else None)

    def id_buckets(self, written: WrittenPart) -> Iterator[beam.pvalue.TaggedOutput]:
        """What is told of its ids once it is written."""
        if written.features:
            yield from id_buckets(written.features, self.hashes)


class _WriteDoFn(beam.DoFn):
    def __init__(self, directory: str, attempt: str, feature_dtype: str) -> None:
        self._directory = directory
        self._attempt = attempt
        self._feature_dtype = feature_dtype
        self._open: dict[int, Part] = {}
        self._written: dict[int, list[WrittenPart]] = {}

    def start_bundle(self) -> None:
        self._open = {}
        # By input file, of those whose first batch came in this bundle; of the others it is not known what else there is.
        self._written = {}

    def process(self, batch: FeatureBatch) -> Iterator[Any]:
        if batch.first:
            self._written[batch.file.index] = []
        part = self._open.setdefault(batch.file.index, Part(batch.file))
        part.rejects.extend(batch.rejects)
        for payload, origin, example_id in zip(
            records.encode(batch.features, batch.origins, self._feature_dtype), batch.origins, batch.features.example_ids, strict=True
        ):
            if part.ends_before(origin.source, origin.offset):
                yield from self._write(part)
                part = self._open[batch.file.index] = Part(batch.file)
            part.add(payload, origin.source, origin.offset, bytes(example_id))
        if batch.last or part.is_full:
            del self._open[batch.file.index]
            yield from self._write(part)
        if batch.last and batch.file.index in self._written:
            attempts.record(self._directory, self._attempt, batch.file, self._written.pop(batch.file.index))

    def finish_bundle(self) -> Iterator[Any]:
        # Only a runner that split the chain would leave anything here.
        for part in self._open.values():
            for output in self._write(part):
                tag, value = (output.tag, output.value) if isinstance(output, beam.pvalue.TaggedOutput) else (None, output)
                windowed = WindowedValue(value, GlobalWindow().max_timestamp(), (GlobalWindow(),))
                yield beam.pvalue.TaggedOutput(tag, windowed) if tag else windowed
        self._open = {}

    def _write(self, part: Part) -> Iterator[Any]:
        done = part.write(self._directory)
        if done is None:
            return
        if part.file.index in self._written:
            self._written[part.file.index].append(done)
        yield done
        yield from part.id_buckets(done)


def repeated_hashes(bucket: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> list[list[tuple[str, int]]]:
    """Finds records whose ids have the same hash.

    `bucket` holds, per feature file, its name, row numbers [n] and hashes [n]. Returns up to five groups of (file name, row). Different
    ids with one 64-bit hash are rare; whoever uses this looks at the ids.
    """
    parts = list(bucket)
    hashes = np.concatenate([h for _, _, h in parts])
    places = np.concatenate([np.full(len(h), i) for i, (_, _, h) in enumerate(parts)])
    rows = np.concatenate([r for _, r, _ in parts])
    order = np.lexsort((rows, places, hashes))
    _, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    groups = []
    for start, count in zip(starts[counts > 1], counts[counts > 1], strict=True):
        members = order[start : start + count]
        groups.append([(parts[places[m]][0], int(rows[m])) for m in members])
        if len(groups) == _TOLD_REPEATS:
            break
    return groups


def check_repeats(directory: str, parts: Sequence[WrittenPart], groups: Iterable[Sequence[tuple[str, int]]]) -> None:
    """Looks at the ids of records whose hashes repeat.

    Raises:
        InputError: two examples have the same id.
    """
    by_name = {part.features.name: part.features for part in parts if part.features}
    for group in groups:
        seen: dict[str, str] = {}
        for name, row in group[:100]:
            if name not in by_name:
                continue
            (payload,) = tfrecords.split_frames(files.read_verified(directory, by_name[name]), row, row + 1)
            feature = tf.train.Example.FromString(payload).features.feature
            example_id = feature["example_id"].bytes_list.value[0].decode()
            place = f"{feature['source'].bytes_list.value[0].decode()} record {feature['offset'].int64_list.value[0]}"
            if example_id in seen:
                raise InputError(
                    f"the id {example_id!r} is used twice, by {seen[example_id]} and {place}: ids must be unique in a data set; "
                    "mend the data, or name another key with --id_key"
                )
            seen[example_id] = place


def assemble_manifest(
    draft: FeatureManifest, parts: Sequence[WrittenPart], max_rejected_fraction: float, directory: str
) -> FeatureManifest:
    """The manifest of a feature set whose parts have been written.

    Raises:
        InputError: more than `max_rejected_fraction` of what was read was set aside.
    """
    ordered = sorted(parts, key=lambda part: part.order)
    reasons: Counter[str] = Counter()
    for part in ordered:
        reasons.update(part.reasons)
    written = tuple(part.features for part in ordered if part.features)
    set_aside = tuple(part.rejected for part in ordered if part.rejected)
    assembled = dataclasses.replace(
        draft,
        files=written,
        rejected_files=set_aside,
        rejected=dict(reasons.most_common()),
        counts={
            "examples": sum(part.examples for part in ordered),
            "rejected": sum(reasons.values()),
            **({"positions": sum(file.count for file in written)} if draft.per_token else {}),
        },
    )
    first = next((part.first_reject for part in ordered if part.first_reject), None)
    check_rejected(assembled, directory, max_rejected_fraction, first)
    return assembled


def check_rejected(assembled: FeatureManifest, directory: str, max_rejected_fraction: float, first: Reject | None = None) -> None:
    """Makes sure that not too much was set aside; `first` is told as an example.

    Raises:
        InputError: more than `max_rejected_fraction` of what was read was set aside.
    """
    examples, rejected = assembled.counts["examples"], assembled.counts["rejected"]
    if rejected > max_rejected_fraction * (examples + rejected):
        told = ", ".join(f"{reason} {n:,}" for reason, n in assembled.rejected.items())
        example = f"; the first: {first.source} record {first.offset}: {first.detail}" if first else ""
        raise InputError(
            f"{rejected:,} of {examples + rejected:,} examples were rejected ({told}), more than "
            f"--max_rejected_fraction={max_rejected_fraction:g} allows{example}; "
            f"see {files.join(directory, assembled.rejected_files[0].name)}"
        )


@dataclasses.dataclass
class WriteFeatures(beam.PTransform):
    """Writes features as TFRecord files and commits them with a manifest, with those that were there already: FeatureBatch, and
    what is told of their parts and ids, → FeatureManifest (one).

    Attributes:
        directory: where to.
        draft: the manifest, its files and counts still missing.
        max_rejected_fraction: the share of examples that may be set aside.
        overwrite: whether what is committed there is replaced; it stands until then.
        attempt: identity of all that decides what is extracted; an attempt that died is gone on from where it is equal.
        accelerator: Beam's resource hint for the step that is fused with the extraction, or None; grouping and committing need none.
    """

    directory: str
    draft: FeatureManifest
    max_rejected_fraction: float
    overwrite: bool
    attempt: str
    accelerator: str | None = None

    def _commit(self, _: None, parts: list[WrittenPart], repeats: list[list[tuple[str, int]]]) -> FeatureManifest:
        committed = assemble_manifest(self.draft, parts, self.max_rejected_fraction, self.directory)
        check_repeats(self.directory, parts, repeats)
        committed = manifest.commit(self.directory, committed, self.overwrite)
        counts = committed.counts
        logging.getLogger(__name__).info("%s: %d examples, %d rejected", self.directory, counts["examples"], counts["rejected"])
        return committed

    def expand(self, collections: Mapping[str, beam.PCollection]) -> beam.PCollection:
        batches = collections["batches"]
        write = accelerated(beam.ParDo(_WriteDoFn(self.directory, self.attempt, self.draft.feature_dtype)), self.accelerator)
        written = batches | "WriteFiles" >> write.with_outputs(IDS, main=PARTS)  # WrittenPart, (bucket, (file name, rows, hashes))
        parts = (collections[PARTS], written[PARTS]) | "JoinParts" >> beam.Flatten()  # WrittenPart
        repeats = (
            (collections[IDS], written[IDS])
            | "JoinIdHashes" >> beam.Flatten()  # (bucket, (file name, rows, hashes))
            | "GroupIdHashes" >> beam.GroupByKey()  # (bucket, [(file name, rows, hashes)])
            | "FindRepeatedIds" >> beam.FlatMapTuple(lambda _, bucket: repeated_hashes(bucket))  # [(file name, row)]
        )
        return (
            batches.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitFeatures" >> beam.Map(self._commit, beam.pvalue.AsList(parts), beam.pvalue.AsList(repeats))  # FeatureManifest
        )


def accelerated(step: _Step, accelerator: str | None) -> _Step:
    """A step with a resource hint. All steps of a fused chain need it, or a runner splits the chain and stores what is between them."""
    return cast(_Step, step.with_resource_hints(accelerator=accelerator)) if accelerator else step  # Beam returns the same step
