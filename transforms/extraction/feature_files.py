"""Feature files: written part by part, taken over from an attempt that died, and committed as a
set.

Only small things are grouped: what each written file holds, and a hash of each id.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.core.errors import InputError
from transforms.core.ids import id_hashes
from transforms.core.origins import Origins
from transforms.examples import rejects
from transforms.examples.format import InputFile
from transforms.examples.rejects import Reject
from transforms.extraction.feature_batch import IDS, PARTS, FeatureBatch, WrittenPart
from transforms.extraction.resume import record
from transforms.extraction.unique_ids import check_repeats, id_buckets, repeated_hashes
from transforms.runtime import counters
from transforms.runtime.threads import Threads
from transforms.storage import feature_record, filesystems, manifests, tfrecords
from transforms.storage.feature_manifest import BYTES_PER_FILE, RECORDS_PER_FILE, FeatureManifest
from transforms.storage.filesystems import NewFile

# Batches of features that wait to be written.
_BATCHES_WAITING = 2

_Step = TypeVar("_Step", bound=beam.PTransform)


class Part:
    """A feature file in the making, and what is set aside beside it."""

    def __init__(self, file: InputFile, directory: str) -> None:
        self.file = file
        self.count = 0
        self.rejects: list[Reject] = []
        self.examples = 0
        self._directory = directory
        self._start: int | None = None
        self._writer = uuid.uuid4().hex[:8]
        self._features: NewFile | None = None
        self._hashes: list[np.ndarray] = []
        self._last: tuple[str, int] | None = None

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self._features.size if self._features else 0

    def add(
        self,
        payloads: Sequence[bytes],
        source: str,
        offsets: np.ndarray,
        example_ids: Sequence[bytes],
    ) -> None:
        """Adds records [n] of the examples at these places, in order and after all others of the
        same.
        """
        if not payloads:
            return
        first, last = int(offsets[0]), int(offsets[-1])
        self.examples += int(np.count_nonzero(np.diff(offsets))) + (self._last != (source, first))
        self._last = source, last
        if self._features is None:
            self._start = first
            self._features = NewFile(self._directory, f"features-{self._stem(first)}.tfrecord")
        self._features.add(tfrecords.join_frames(payloads))
        self._hashes.append(id_hashes(example_ids))
        self.count += len(payloads)

    def room(self, payloads: Sequence[bytes], source: str, offsets: np.ndarray) -> int:
        """How many of these records belong into it: until it is full, and whatever else there is of
        an example that it has records of.
        """
        if self.is_full:
            fit = 0
        else:
            sizes = np.cumsum([len(payload) + 16 for payload in payloads])
            fit = min(
                RECORDS_PER_FILE - self.count,
                1 + int(np.searchsorted(sizes, BYTES_PER_FILE - self.size)),
            )
        last = (source, offsets[fit - 1]) if 0 < fit <= len(offsets) else self._last
        while fit < len(offsets) and last == (source, offsets[fit]):
            fit += 1
        return min(fit, len(offsets))

    @property
    def is_full(self) -> bool:
        """Whether it is as large as files become."""
        return (
            self.count >= RECORDS_PER_FILE
            or len(self.rejects) >= RECORDS_PER_FILE
            or self.size >= BYTES_PER_FILE
        )

    def finish(self) -> WrittenPart | None:
        """Writes the rest of it, and gives it its name, unless there is nothing in it."""
        if not self._features and not self.rejects:
            return None
        start = self.rejects[0].offset if self._start is None else self._start
        ordered = sorted(self.rejects, key=lambda reject: reject.offset)
        written = set_aside = None
        if self._features:
            written = self._features.finish(self.count)
            counters.add("feature-bytes-written", written.size)
        if ordered:
            set_aside = filesystems.write(
                self._directory,
                f"rejected-{self._stem(start)}.jsonl",
                rejects.to_jsonl(ordered),
                len(ordered),
            )
        reasons = rejects.count_reasons(self.rejects)
        return WrittenPart(
            (self.file.index, start),
            written,
            set_aside,
            self.examples,
            reasons,
            ordered[0] if ordered else None,
        )

    def discard(self) -> None:
        """Gives it up, unless it is finished."""
        if self._features:
            self._features.discard()

    def _stem(self, start: int) -> str:
        return f"{self.file.index:05d}-{start:010d}-{self._writer}"

    def id_buckets(self, written: WrittenPart) -> Iterator[beam.pvalue.TaggedOutput]:
        """What is told of its ids once it is written."""
        if written.features:
            yield from id_buckets(written.features, np.concatenate(self._hashes))


class PartWriter:
    """Writes batches of features as parts, file by file.

    Attributes:
        directory: where to.
        attempt: under which finished files are recorded.
        feature_dtype: what loss gradients and activations are stored as.
    """

    def __init__(self, directory: str, attempt: str, feature_dtype: str) -> None:
        self._directory = directory
        self._attempt = attempt
        self._feature_dtype = feature_dtype
        self._open: dict[int, Part] = {}
        # By input file, of those whose first batch came here; of the others it is not known what
        # else there is.
        self._written: dict[int, list[WrittenPart]] = {}

    def add(self, batch: FeatureBatch) -> list[Any]:
        """Adds a batch; gives what there is to tell of the parts that are written by then:
        WrittenPart, and what `id_buckets` tells.
        """
        told: list[Any] = []
        if batch.first:
            self._written[batch.file.index] = []
        part = self._open.setdefault(batch.file.index, Part(batch.file, self._directory))
        part.rejects.extend(batch.rejects)
        source, offsets, example_ids = (
            batch.file.path,
            batch.offsets,
            batch.features.example_ids.tolist(),
        )
        origins = Origins((source,), np.zeros(len(offsets), np.int32), offsets, batch.digests)
        payloads = feature_record.encode_columns(
            batch.features, origins, batch.kept, self._feature_dtype
        )
        while payloads:
            fit = part.room(payloads, source, offsets)
            part.add(payloads[:fit], source, offsets[:fit], example_ids[:fit])
            payloads, offsets, example_ids = payloads[fit:], offsets[fit:], example_ids[fit:]
            if payloads:
                told += self._finish(part)
                part = self._open[batch.file.index] = Part(batch.file, self._directory)
        if batch.last or part.is_full:
            del self._open[batch.file.index]
            told += self._finish(part)
        if batch.last and batch.file.index in self._written:
            record(self._directory, self._attempt, batch.file, self._written.pop(batch.file.index))
        return told

    def end(self) -> list[Any]:
        """Writes what is left, as where a runner splits the chain of steps; tells what `add`
        tells.
        """
        told = [one for part in self._open.values() for one in self._finish(part)]
        self._open.clear()
        return told

    def discard(self) -> None:
        """Gives up what is not finished."""
        for part in self._open.values():
            part.discard()
        self._open.clear()

    def _finish(self, part: Part) -> list[Any]:
        done = part.finish()
        if done is None:
            return []
        if part.file.index in self._written:
            self._written[part.file.index].append(done)
        return [done, *part.id_buckets(done)]


class _WriteDoFn(beam.DoFn):
    """Writes in a thread, while the model computes: FeatureBatch → WrittenPart, and, tagged, what
    is told of ids.
    """

    def __init__(self, directory: str, attempt: str, feature_dtype: str) -> None:
        self._writer = directory, attempt, feature_dtype
        self._thread: Threads | None = None

    def start_bundle(self) -> None:
        self.teardown()
        # One, so that batches are written in order.
        self._thread = Threads(1, _BATCHES_WAITING, "write")
        self._parts = PartWriter(*self._writer)

    def process(self, batch: FeatureBatch) -> Iterator[Any]:
        assert self._thread is not None
        for told in self._thread.call(self._parts.add, batch):
            yield from told

    def finish_bundle(self) -> Iterator[Any]:
        assert self._thread is not None
        for told in chain(self._thread.call(self._parts.end), self._thread.rest()):
            yield from map(windowed, told)
        self.teardown()

    def teardown(self) -> None:
        # What was handed over before a run died is written, so that the next one can go on from
        # there.
        if self._thread is not None:
            self._thread.close()
            self._thread = None
            self._parts.discard()


def windowed(output: Any) -> Any:
    """An output, tagged or not, as a bundle's end has to give it."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, windowed(output.value))
    return WindowedValue(output, GlobalWindow().max_timestamp(), (GlobalWindow(),))


def assemble_manifest(
    draft: FeatureManifest,
    parts: Sequence[WrittenPart],
    max_rejected_fraction: float,
    directory: str,
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


def check_rejected(
    assembled: FeatureManifest,
    directory: str,
    max_rejected_fraction: float,
    first: Reject | None = None,
) -> None:
    """Makes sure that not too much was set aside; `first` is told as an example.

    Raises:
        InputError: more than `max_rejected_fraction` of what was read was set aside.
    """
    examples, rejected = assembled.counts["examples"], assembled.counts["rejected"]
    if rejected > max_rejected_fraction * (examples + rejected):
        told = ", ".join(f"{reason} {n:,}" for reason, n in assembled.rejected.items())
        example = (
            f"; the first: {first.source} record {first.offset}: {first.detail}" if first else ""
        )
        raise InputError(
            f"{rejected:,} of {examples + rejected:,} examples were rejected ({told}), more than "
            f"`max_rejected_fraction={max_rejected_fraction:g}` allows{example}; "
            f"see {filesystems.join(directory, assembled.rejected_files[0].name)}"
        )


@dataclasses.dataclass
class WriteFeatures(beam.PTransform):
    """Writes features as TFRecord files and commits them with a manifest, with those that were
    there already: FeatureBatch, and what is told of their parts and ids, → FeatureManifest (one).

    Attributes:
        directory: where to.
        draft: the manifest, its files and counts still missing.
        max_rejected_fraction: the share of examples that may be set aside.
        overwrite: whether what is committed there is replaced; it stands until then.
        attempt: identity of all that decides what is extracted; an attempt that died is gone on
            from where it is equal.
        accelerator: Beam's resource hint for the step that is fused with the extraction, or None;
            grouping and committing need none.
    """

    directory: str
    draft: FeatureManifest
    max_rejected_fraction: float
    overwrite: bool
    attempt: str
    accelerator: str | None = None

    def _commit(
        self, _: None, parts: list[WrittenPart], repeats: list[list[tuple[str, int]]]
    ) -> FeatureManifest:
        committed = assemble_manifest(self.draft, parts, self.max_rejected_fraction, self.directory)
        check_repeats(self.directory, parts, repeats)
        committed = manifests.commit(self.directory, committed, self.overwrite)
        counts = committed.counts
        logging.getLogger(__name__).info(
            "%s: %d examples, %d rejected", self.directory, counts["examples"], counts["rejected"]
        )
        return committed

    def expand(self, collections: Mapping[str, beam.PCollection]) -> beam.PCollection:
        batches = collections["batches"]
        write = accelerated(
            beam.ParDo(_WriteDoFn(self.directory, self.attempt, self.draft.feature_dtype)),
            self.accelerator,
        )
        written = batches | "WriteFiles" >> write.with_outputs(
            IDS, main=PARTS
        )  # WrittenPart, (bucket, (file name, rows, hashes))
        parts = (collections[PARTS], written[PARTS]) | "JoinParts" >> beam.Flatten()  # WrittenPart
        repeats = (
            (collections[IDS], written[IDS])
            | "JoinIdHashes" >> beam.Flatten()  # (bucket, (file name, rows, hashes))
            | "GroupIdHashes" >> beam.GroupByKey()  # (bucket, [(file name, rows, hashes)])
            | "FindRepeatedIds"
            >> beam.FlatMapTuple(lambda _, bucket: repeated_hashes(bucket))  # [(file name, row)]
        )
        return (
            batches.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitFeatures"
            >> beam.Map(
                self._commit, beam.pvalue.AsList(parts), beam.pvalue.AsList(repeats)
            )  # FeatureManifest
        )


def accelerated(step: _Step, accelerator: str | None) -> _Step:
    """A step with a resource hint. All steps of a fused chain need it, or a runner splits the chain
    and stores what is between them.
    """
    return (
        cast(_Step, step.with_resource_hints(accelerator=accelerator)) if accelerator else step
    )  # Beam returns the same step
