"""Stage 1: from examples to a feature set.

Reading, extracting and writing are one fused chain of steps that hand on batches, so no example and no feature is ever shuffled. Only
small things are grouped: what each written file holds, and a hash of each id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from transforms import attempts, checkpoints, counting, files, manifest, records, rejects, staging, tfrecords
from transforms.attempts import WrittenPart
from transforms.checkpoints import Checkpoints, ModelSpec
from transforms.errors import InputError
from transforms.examples import ExampleBatch, ExampleFormat, InputFile, ReadExamples
from transforms.files import StoredFile
from transforms.losses import active
from transforms.manifest import BYTES_PER_FILE, RECORDS_PER_FILE, FeatureManifest
from transforms.records import Features, Origin
from transforms.rejects import Reject
from transforms.sharing import OnePerMachine

# A batch of one goes through another matrix product, whose last bits differ.
_SMALLEST_BATCH = 2
_ID_BUCKETS = 64
_TOLD_REPEATS = 5

_Step = TypeVar("_Step", bound=beam.PTransform)


@dataclasses.dataclass(frozen=True)
class Model:
    """The checkpoints as a pipeline carries them: what to load, and the handle under which a process loads it once.

    Attributes:
        spec: what to load; its paths may be remote.
        digests: SHA-256 of each checkpoint's content; a worker that finds another content refuses it.
        per_machine: whether the worker processes of a machine share what one of them has loaded, instead of each loading its own.
        shared: the handle; equal in all copies of this object, on all threads of a process.
        extraction: likewise, of what `extractor` gives.
        tag: likewise for the processes of a machine.
    """

    spec: ModelSpec
    digests: tuple[str, ...]
    per_machine: bool = False
    shared: Shared = dataclasses.field(default_factory=Shared)
    extraction: Shared = dataclasses.field(default_factory=Shared)
    tag: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def acquire(self) -> Checkpoints:
        """The loaded checkpoints, shared by all who hold them in this process."""
        return self.shared.acquire(self._load)

    def extractor(self) -> Callable[[ExampleBatch, ExtractionPlan], FeatureBatch]:
        """What extracts batches: in this process, or in the one of its machine that has the checkpoints."""
        if self.per_machine:
            return OnePerMachine(self._extraction, self.tag)
        return self._extraction()

    def _extraction(self) -> Extraction:
        return self.extraction.acquire(lambda: Extraction(self.acquire()))

    def _load(self) -> Checkpoints:
        local = localize(self.spec)
        for path, stored, digest in zip(local.checkpoints, self.spec.checkpoints, self.digests, strict=True):
            if checkpoints.inspect(path).digest != digest:
                raise InputError(f"{stored} has changed since the run was started: start it again")
        for gpu in tf.config.list_physical_devices("GPU"):
            # It cannot be changed once the GPU is in use.
            with contextlib.suppress(RuntimeError):
                # Else the first process takes all of its memory, and the next on the same machine dies.
                tf.config.experimental.set_memory_growth(gpu, True)
        counting.add("checkpoint-loads")
        return checkpoints.load(local)


def localize(spec: ModelSpec) -> ModelSpec:
    """The same model with its remote files copied to this machine."""
    model = spec.model
    if model is not None and model.endswith((".keras", ".json")):
        model = staging.local_checkpoint(model)
    return dataclasses.replace(spec, checkpoints=tuple(map(staging.local_checkpoint, spec.checkpoints)), model=model)


@dataclasses.dataclass(frozen=True)
class ExtractionPlan:
    """How features are extracted.

    Attributes:
        batch_size: examples per call of the model.
        predicted_labels: whether the last checkpoint's prediction serves as label.
        feature_dtype: what loss gradients and activations are rounded to and stored as, one of `records.DTYPES`.
    """

    batch_size: int
    predicted_labels: bool = False
    feature_dtype: str = "float32"


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of up to a batch of examples of one file, in order, and what was set aside among them; fields as in `ExampleBatch`."""

    file: InputFile
    features: Features
    origins: list[Origin]
    rejects: list[Reject]
    first: bool
    last: bool


class FeatureExtractor:
    """Features of batches of examples, by one TensorFlow function over all checkpoints.

    Every batch is padded to the plan's batch size, so that the function is traced once. Where the model runs out of memory, batches are
    halved from there on; no bit of the features depends on their size.
    """

    def __init__(self, model: Checkpoints, plan: ExtractionPlan) -> None:
        self._model = model
        self._plan = plan
        self._batch_size = max(plan.batch_size, _SMALLEST_BATCH)
        self._function = tf.function(self._compute)

    @property
    def feature_dtype(self) -> str:
        """What features are rounded to."""
        return self._plan.feature_dtype

    def _compute(self, inputs: tuple[tf.Tensor, ...], labels: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
        model, loss = self._model, self._model.loss
        outputs = [model.logits_and_activations(t, inputs) for t in range(model.size)]
        logits = [z for z, _ in outputs]
        if self._plan.predicted_labels:
            labels = loss.predicted_labels(logits[-1])
        loss_grads = tf.stack([loss.loss_grads(z, labels) for z in logits], axis=1)
        activations = tf.stack([h for _, h in outputs], axis=1)
        if model.include_bias:
            activations = tf.concat([activations, tf.ones_like(activations[..., :1])], axis=-1)
        prediction, probability = loss.predict(logits[-1])
        label_probabilities = tf.stack([loss.label_probability(z, labels) for z in logits], axis=1)
        return loss_grads, activations, prediction, probability, label_probabilities, labels

    def __call__(self, example_ids: Sequence[str], inputs: Sequence[np.ndarray], labels: np.ndarray | None) -> Features:
        """Extracts the features of n examples: `inputs` arrays [n, …], `labels` [n, label_width] or None where predicted.

        Raises:
            InputError: the model runs out of memory even with the smallest batch.
        """
        loss = self._model.loss
        given = None if self._plan.predicted_labels or labels is None else labels.astype(np.int64 if loss.label_is_integer else np.float32)
        while True:
            tried = self._batch_size
            try:
                loss_grads, activations, prediction, probability, label_probabilities, used = self._extract(
                    inputs, given, len(example_ids), tried
                )
                break
            except tf.errors.ResourceExhaustedError as error:
                self._halve(error, tried)
        return Features.of(
            example_ids,
            loss.record_labels(used),
            active(prediction) if loss.task == "multilabel" else prediction,
            probability,
            label_probabilities,
            loss_grads,
            activations,
            self._plan.feature_dtype,
        )

    def _extract(self, inputs: Sequence[np.ndarray], labels: np.ndarray | None, n: int, batch_size: int) -> list[np.ndarray]:
        """What `_compute` gives for n examples, batch after batch."""
        parts = []
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            padded = tuple(tf.constant(_pad(array[rows], batch_size)) for array in inputs)
            given = None if labels is None else tf.constant(_pad(labels[rows], batch_size))
            parts.append([tensor.numpy()[: n - start] for tensor in self._function(padded, given)])
        return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _halve(self, error: tf.errors.ResourceExhaustedError, tried: int) -> None:
        """Makes batches smaller from here on, after the model has run out of memory with `tried` examples.

        Raises:
            InputError: they are as small as they can be.
        """
        if self._batch_size < tried:
            # Another thread has.
            return
        lines = str(error.message).splitlines()
        reason = next((line.strip() for line in lines if "allocat" in line), lines[0])
        if tried == _SMALLEST_BATCH:
            raise InputError(
                f"the model runs out of memory with {_SMALLEST_BATCH} examples at once ({reason}): use workers with more memory, or a "
                "smaller model"
            ) from error
        self._batch_size = max(_SMALLEST_BATCH, tried // 2)
        counting.add("batches-halved")
        logging.getLogger(__name__).warning(
            "the model ran out of memory with %d examples at once (%s): going on with %d; --batch_size=%d saves the attempt",
            tried,
            reason,
            self._batch_size,
            self._batch_size,
        )


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


class Extraction:
    """Extracts batches of any set with loaded checkpoints, for all threads of a process."""

    def __init__(self, model: Checkpoints) -> None:
        self._model = model
        self._extractors: dict[ExtractionPlan, FeatureExtractor] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: ExampleBatch, plan: ExtractionPlan) -> FeatureBatch:
        """As `extract_features`."""
        with self._lock:
            if plan not in self._extractors:
                self._extractors[plan] = FeatureExtractor(self._model, plan)
            extractor = self._extractors[plan]
        return extract_features(batch, extractor, self._model.loss.invalid_labels)


def extract_features(
    batch: ExampleBatch, extractor: FeatureExtractor, invalid_labels: Callable[[np.ndarray], list[str | None]]
) -> FeatureBatch:
    """The features of a batch; examples whose label is not one, or whose features are not finite, are set aside."""
    aside = list(batch.rejects)
    rows = np.arange(len(batch.example_ids))

    def set_aside(reason: str, details: Mapping[int, str]) -> None:
        for i, detail in details.items():
            aside.append(Reject(batch.file.path, batch.offsets[i], batch.example_ids[i], reason, detail))

    if batch.labels is not None and len(rows):
        wrong = {i: detail for i, detail in enumerate(invalid_labels(batch.labels)) if detail is not None}
        set_aside(rejects.BAD_LABEL, wrong)
        rows = np.array([i for i in rows if i not in wrong], np.int64)
    features = NO_FEATURES
    if len(rows):
        features = extractor(
            [batch.example_ids[i] for i in rows],
            [array[rows] for array in batch.inputs],
            None if batch.labels is None else batch.labels[rows],
        )
        finite = np.isfinite(features.loss_grad_norms).all(1) & np.isfinite(features.activation_norms).all(1)
        if not finite.all():
            detail = f"the model gave a NaN, an infinity or a number beyond {extractor.feature_dtype} for this example"
            set_aside(rejects.NON_FINITE_FEATURES, dict.fromkeys(rows[~finite].tolist(), detail))
            features, rows = features.take(finite), rows[finite]
    origins = [Origin(batch.file.path, batch.offsets[i], batch.digests[i], batch.kept[i]) for i in rows]
    return FeatureBatch(batch.file, features, origins, aside, batch.first, batch.last)


NO_FEATURES = Features.of([], np.empty((0, 1)), np.empty((0, 1)), np.empty(0), np.empty((0, 0)), np.empty((0, 0, 0)), np.empty((0, 0, 0)))


class _ExtractDoFn(beam.DoFn):
    def __init__(self, model: Model, plan: ExtractionPlan) -> None:
        self._model = model
        self._plan = plan
        self._extract: Callable[[ExampleBatch, ExtractionPlan], FeatureBatch] | None = None

    def process(self, batch: ExampleBatch) -> Iterator[FeatureBatch]:
        # Not in setup(), whose counters are lost on the in-process runner.
        if self._extract is None:
            self._extract = self._model.extractor()
        extracted = self._extract(batch, self._plan)
        counting.add("examples-extracted", len(extracted.origins))
        counting.add("examples-rejected", len(extracted.rejects))
        yield extracted


@dataclasses.dataclass
class ExtractFeatures(beam.PTransform):
    """Runs all checkpoints over batches of examples: ExampleBatch → FeatureBatch."""

    model: Model
    plan: ExtractionPlan

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | "RunCheckpoints" >> beam.ParDo(_ExtractDoFn(self.model, self.plan))  # FeatureBatch


# Outputs of the steps that find or write parts.
_PARTS, _IDS = "parts", "ids"


def _id_hash(example_id: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(example_id, digest_size=8).digest(), "little")


def _id_buckets(file: StoredFile, hashes: Sequence[int]) -> Iterator[beam.pvalue.TaggedOutput]:
    """What `repeated_hashes` is told of a feature file."""
    array = np.array(hashes, np.uint64)
    for bucket in range(_ID_BUCKETS):
        (rows,) = np.nonzero(array % _ID_BUCKETS == bucket)
        if len(rows):
            yield beam.pvalue.TaggedOutput(_IDS, (bucket, (file.name, rows.astype(np.int32), array[rows])))


class _ReuseDoFn(beam.DoFn):
    """Takes over what an earlier attempt has finished; yields the files of examples that are left."""

    def __init__(self, directory: str, fingerprint: str) -> None:
        self._directory = directory
        self._fingerprint = fingerprint

    def process(self, file: InputFile) -> Iterator[Any]:
        found = attempts.finished(self._directory, self._fingerprint, file)
        if found is None:
            yield file
            return
        counting.add("example-bytes-read", file.size)
        for part, ids in found:
            counting.add("examples-reused", len(ids) + sum(part.reasons.values()))
            yield beam.pvalue.TaggedOutput(_PARTS, part)
            if part.features:
                yield from _id_buckets(part.features, [_id_hash(example_id) for example_id in ids])


class _Part:
    """A feature file in the making."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.start: int | None = None
        self.payloads: list[bytes] = []
        self.size = 0
        self.hashes: list[int] = []
        self.rejects: list[Reject] = []

    def add(self, payload: bytes, origin: Origin, example_id: bytes) -> None:
        self.start = origin.offset if self.start is None else self.start
        self.payloads.append(payload)
        self.size += len(payload) + 16
        self.hashes.append(_id_hash(example_id))

    @property
    def is_full(self) -> bool:
        return len(self.payloads) >= RECORDS_PER_FILE or len(self.rejects) >= RECORDS_PER_FILE or self.size >= BYTES_PER_FILE


class _WriteDoFn(beam.DoFn):
    def __init__(self, directory: str, fingerprint: str, feature_dtype: str) -> None:
        self._directory = directory
        self._fingerprint = fingerprint
        self._feature_dtype = feature_dtype
        self._open: dict[int, _Part] = {}
        self._written: dict[int, list[WrittenPart]] = {}

    def start_bundle(self) -> None:
        self._open = {}
        # By input file, of those whose first batch came in this bundle; of the others it is not known what else there is.
        self._written = {}

    def process(self, batch: FeatureBatch) -> Iterator[Any]:
        if batch.first:
            self._written[batch.file.index] = []
        part = self._open.setdefault(batch.file.index, _Part(batch.file))
        part.rejects.extend(batch.rejects)
        for payload, origin, example_id in zip(
            records.encode(batch.features, batch.origins, self._feature_dtype), batch.origins, batch.features.example_ids, strict=True
        ):
            part.add(payload, origin, bytes(example_id))
            if part.is_full:
                yield from self._write(part)
                part = self._open[batch.file.index] = _Part(batch.file)
        if batch.last or part.is_full:
            del self._open[batch.file.index]
            yield from self._write(part)
        if batch.last and batch.file.index in self._written:
            attempts.record(self._directory, self._fingerprint, batch.file, self._written.pop(batch.file.index))

    def finish_bundle(self) -> Iterator[Any]:
        # Only a runner that split the chain would leave anything here.
        for part in self._open.values():
            for output in self._write(part):
                tag, value = (output.tag, output.value) if isinstance(output, beam.pvalue.TaggedOutput) else (None, output)
                windowed = WindowedValue(value, GlobalWindow().max_timestamp(), (GlobalWindow(),))
                yield beam.pvalue.TaggedOutput(tag, windowed) if tag else windowed
        self._open = {}

    def _write(self, part: _Part) -> Iterator[Any]:
        if not part.payloads and not part.rejects:
            return
        start = part.start if part.start is not None else part.rejects[0].offset
        stem = f"{part.file.index:05d}-{start:010d}-{uuid.uuid4().hex[:8]}"
        written = set_aside = None
        if part.payloads:
            written = files.write(self._directory, f"features-{stem}.tfrecord", tfrecords.join_frames(part.payloads), len(part.payloads))
            counting.add("feature-bytes-written", written.size)
            yield from _id_buckets(written, part.hashes)
        if part.rejects:
            ordered = sorted(part.rejects, key=lambda reject: reject.offset)
            set_aside = files.write(self._directory, f"rejected-{stem}.jsonl", rejects.to_jsonl(ordered), len(ordered))
        done = WrittenPart(
            (part.file.index, start), written, set_aside, rejects.count_reasons(part.rejects), ordered[0] if part.rejects else None
        )
        if part.file.index in self._written:
            self._written[part.file.index].append(done)
        yield done


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
        counts={"examples": sum(file.count for file in written), "rejected": sum(reasons.values())},
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
    """Writes features as TFRecord files and commits them with a manifest, with those of an earlier attempt: FeatureBatch, and what
    `FindFinished` tells of parts and ids, → FeatureManifest (one).

    Attributes:
        directory: where to.
        draft: the manifest, its files and counts still missing.
        max_rejected_fraction: the share of examples that may be set aside.
        overwrite: whether what is committed there is replaced; it stands until then.
        accelerator: Beam's resource hint for the step that is fused with the extraction, or None; grouping and committing need none.
    """

    directory: str
    draft: FeatureManifest
    max_rejected_fraction: float
    overwrite: bool
    accelerator: str | None = None

    def _commit(self, _: None, parts: list[WrittenPart], repeats: list[list[tuple[str, int]]]) -> FeatureManifest:
        committed = assemble_manifest(self.draft, parts, self.max_rejected_fraction, self.directory)
        check_repeats(self.directory, parts, repeats)
        committed = manifest.commit(self.directory, committed, self.overwrite)
        logging.getLogger(__name__).info("%s: %d examples, %d rejected", self.directory, *committed.counts.values())
        return committed

    def expand(self, collections: Mapping[str, beam.PCollection]) -> beam.PCollection:
        batches = collections["batches"]
        write = _accelerated(beam.ParDo(_WriteDoFn(self.directory, self.draft.fingerprint, self.draft.feature_dtype)), self.accelerator)
        written = batches | "WriteFiles" >> write.with_outputs(_IDS, main=_PARTS)  # WrittenPart, (bucket, (file name, rows, hashes))
        parts = (collections[_PARTS], written[_PARTS]) | "JoinParts" >> beam.Flatten()  # WrittenPart
        repeats = (
            (collections[_IDS], written[_IDS])
            | "JoinIdHashes" >> beam.Flatten()  # (bucket, (file name, rows, hashes))
            | "GroupIdHashes" >> beam.GroupByKey()  # (bucket, [(file name, rows, hashes)])
            | "FindRepeatedIds" >> beam.FlatMapTuple(lambda _, bucket: repeated_hashes(bucket))  # [(file name, row)]
        )
        return (
            batches.pipeline
            | "StartCommit" >> beam.Create([None])
            | "CommitFeatures" >> beam.Map(self._commit, beam.pvalue.AsList(parts), beam.pvalue.AsList(repeats))  # FeatureManifest
        )


def _accelerated(step: _Step, accelerator: str | None) -> _Step:
    """A step with a resource hint. All steps of a fused chain need it, or a runner splits the chain and stores what is between them."""
    return cast(_Step, step.with_resource_hints(accelerator=accelerator)) if accelerator else step  # Beam returns the same step


@dataclasses.dataclass
class ComputeFeatureSet(beam.PTransform):
    """Stage 1, whole: files of examples in, a committed feature set out; yields its FeatureManifest.

    Reading, extracting and writing carry `write.accelerator`, the resource hint, so that all of them stay one stage.

    Attributes:
        input_files: the files, in the set's order.
        form: how their records are read.
        model: the checkpoints.
        plan: how features are extracted.
        allow_truncated: whether a file with an unreadable tail is used as far as it goes.
        write: where the set goes.
    """

    input_files: Sequence[InputFile]
    form: ExampleFormat
    model: Model
    plan: ExtractionPlan
    allow_truncated: bool
    write: WriteFeatures

    def expand(self, pipeline: Any) -> beam.PCollection:
        reuse = beam.ParDo(_ReuseDoFn(self.write.directory, self.write.draft.fingerprint))
        read = ReadExamples(self.form, self.plan.batch_size, self.allow_truncated)
        extract = ExtractFeatures(self.model, self.plan)
        found = (
            pipeline
            | "ListFiles" >> beam.Create(list(self.input_files), reshuffle=False)  # InputFile
            | "SpreadFiles" >> beam.Reshuffle()  # InputFile
            | "FindFinished" >> reuse.with_outputs(_PARTS, _IDS, main="left")  # InputFile, WrittenPart, (bucket, (file name, rows, hashes))
        )
        batches = (
            found.left
            | "ReadExamples" >> _accelerated(read, self.write.accelerator)  # ExampleBatch
            | "ExtractFeatures" >> _accelerated(extract, self.write.accelerator)  # FeatureBatch
        )
        collections = {"batches": batches, _PARTS: found[_PARTS], _IDS: found[_IDS]}
        return collections | "WriteFeatures" >> self.write  # FeatureManifest
