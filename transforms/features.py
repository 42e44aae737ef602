"""Stage 1: from examples to a feature set.

Reading, extracting and writing are one fused chain of steps that hand on batches, so no example and no feature is ever shuffled. Only
small things are grouped: what each written file holds, and a hash of each id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.utils.shared import Shared

from transforms import checkpoints, counting, inspection, rejects, staging, tokens
from transforms.allocation import keep_freed_memory
from transforms.checkpoints import Checkpoints, ModelSpec
from transforms.errors import InputError
from transforms.examples import ExampleBatch, ExampleFormat, InputFile, ReadExamples, take_kept
from transforms.feature_files import IDS, NO_FEATURES, PARTS, FeatureBatch, FindFinished, WriteFeatures, accelerated, windowed
from transforms.incremental import Base, FindUnchanged
from transforms.losses import active
from transforms.records import Features
from transforms.rejects import Reject
from transforms.sharing import OnePerMachine
from transforms.threads import Threads

# A batch of one goes through another matrix product, whose last bits differ.
_SMALLEST_BATCH = 2
# So many batches are extracted at once where one takes fewer seconds: what stands around a call of the model, in Python, then takes nearly
# as long as the call. Of a larger model two would need twice the memory and gain nothing.
_AT_ONCE, _LONG = 2, 0.05


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
            if inspection.digest(path) != digest:
                raise InputError(f"{stored} has changed since the run was started: start it again")
        for gpu in tf.config.list_physical_devices("GPU"):
            # It cannot be changed once the GPU is in use.
            with contextlib.suppress(RuntimeError):
                # Else the first process takes all of its memory, and the next on the same machine dies.
                tf.config.experimental.set_memory_growth(gpu, True)
        counting.add("checkpoint-loads")
        return checkpoints.load(local)


def choose_threads(checkpoints: int) -> None:
    """Sets TensorFlow's threads for so many checkpoints; without effect once TensorFlow computes.

    Checkpoints do not wait for each other, so where there is one for each processor, each runs in one thread. To share out every single
    operation costs a small network a fifth of its time.
    """
    if checkpoints >= len(os.sched_getaffinity(0)):
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(1)


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


class FeatureExtractor:
    """Features of batches of examples, by one TensorFlow function over all checkpoints.

    Every batch is padded to the plan's batch size, so that the function is traced once. Where the model runs out of memory, batches are
    halved from there on; features depend on their size at most by rounding, as in recurrent layers.
    """

    def __init__(self, model: Checkpoints, plan: ExtractionPlan) -> None:
        self._model = model
        self._plan = plan
        self._batch_size = max(plan.batch_size, _SMALLEST_BATCH)
        # Nothing here needs Python's control flow translated, nor do layers, for which Keras switches it off.
        self._function = tf.function(self._compute, autograph=False)
        # By dtypes and shapes of what a batch is made of. tf.function itself takes as long as ten examples to find the trace that fits.
        self._traced: dict[tuple[Any, ...], Callable[..., tuple[tf.Tensor, ...]]] = {}

    @property
    def feature_dtype(self) -> str:
        """What features are rounded to."""
        return self._plan.feature_dtype

    def _compute(self, inputs: tuple[tf.Tensor, ...], labels: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
        model, loss = self._model, self._model.loss
        outputs = [model.logits_and_activations(t, inputs) for t in range(model.size)]
        logits = [z for z, _, _ in outputs]
        if self._plan.predicted_labels:
            labels = loss.predicted_labels(logits[-1])
        labels = tf.reshape(labels, [-1, loss.label_width])
        # Of all checkpoints at once: small networks spend as much time on starting operations as on computing them.
        n, flat = tf.shape(labels)[0], tf.reshape(tf.stack(logits, axis=1), [-1, model.outputs])
        repeated = tf.repeat(labels, model.size, axis=0)
        loss_grads = tf.reshape(loss.loss_grads(flat, repeated), [n, model.size, model.outputs])
        ones = [tf.ones_like(outputs[0][1][:, :1])] if model.include_bias else []
        activations = tf.concat([part for _, h, _ in outputs for part in (h, *ones)], axis=1)
        activations = tf.reshape(activations, [n, model.size, model.units + len(ones)])
        prediction, probability = loss.predict(logits[-1])
        label_probabilities = tf.reshape(loss.label_probability(flat, repeated), [n, model.size])
        unmasked = tf.stack([tf.ones_like(z[:, 0], tf.bool) if mask is None else mask for z, _, mask in outputs], axis=1)
        return loss_grads, activations, prediction, probability, label_probabilities, labels, unmasked

    def __call__(self, example_ids: np.ndarray, inputs: Sequence[np.ndarray], labels: np.ndarray | None) -> Features:
        """Extracts the features of examples: ids [n] (dtype S), `inputs` arrays [n, …], `labels` [n, label_width] or None where predicted.

        Raises:
            InputError: the model runs out of memory even with the smallest batch.
        """
        arrays = self._run(inputs, labels, len(example_ids))
        return self._features(example_ids, arrays)

    def positions(
        self, example_ids: np.ndarray, inputs: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> tuple[Features, np.ndarray, dict[int, tuple[str, str]]]:
        """Extracts the features of all positions of n examples that are neither masked nor ignored, of a model that works on P of them.

        Args:
            example_ids: [n] byte strings (dtype S).
            inputs: arrays [n, …].
            labels: [n, P · label_width], or None where predicted.

        Returns:
            Features of m positions, row by row; the rows [m] of their examples; and, by row, reason and details why an example has none.
            A loss gradient is that of the example's loss, of which Keras's loss of the position is a part.

        Raises:
            InputError: the model runs out of memory even with the smallest batch.
        """
        loss, n, size = self._model.loss, len(example_ids), self._model.positions or 1
        ignored = np.zeros(n * size, bool)
        details: list[str | None] = [None] * (n * size)
        if labels is not None:
            flat = labels.reshape(n * size, loss.label_width)
            if loss.ignored_label is not None:
                ignored = flat[:, 0] == loss.ignored_label
            details = loss.invalid_labels(flat)
            usable = np.array([detail is None for detail in details]) & ~ignored
            # What stands at masked positions is nobody's concern.
            labels = np.where(usable[:, None], flat, 0).reshape(labels.shape)
        *arrays, unmasked = self._run(inputs, labels, n)
        counted = unmasked & ~ignored[:, None]
        weights = tokens.weights(counted.reshape(n, size, -1), loss.means_positions).reshape(counted.shape)
        present = counted.any(axis=1)
        without: dict[int, tuple[str, str]] = {}
        for i in np.flatnonzero(~present.reshape(n, size).any(axis=1)).tolist():
            without[i] = rejects.NO_POSITIONS, "all its positions are masked or ignored by the loss"
        for row in np.flatnonzero(present).tolist():
            if details[row] is not None and not ignored[row]:
                without.setdefault(row // size, (rejects.BAD_LABEL, f"{details[row]} (position {row % size})"))
        rows = np.array([row for row in np.flatnonzero(present).tolist() if row // size not in without], np.int64)
        loss_grads, *others = (array[rows] for array in arrays)
        loss_grads = (loss_grads * weights[rows][..., None]).astype(np.float32)
        texts = example_ids.tolist()
        ids = [tokens.record_id(texts[row // size], row % size) for row in rows.tolist()]
        return self._features(ids, [loss_grads, *others]), rows // size, without

    def _features(self, ids: Sequence[bytes] | np.ndarray, arrays: Sequence[np.ndarray]) -> Features:
        loss = self._model.loss
        loss_grads, activations, prediction, probability, label_probabilities, labels = arrays[:6]
        return Features.of(
            ids,
            loss.record_labels(labels),
            active(prediction) if loss.task == "multilabel" else prediction,
            probability,
            label_probabilities,
            loss_grads,
            activations,
            self._plan.feature_dtype,
        )

    def _run(self, inputs: Sequence[np.ndarray], labels: np.ndarray | None, n: int) -> list[np.ndarray]:
        """What `_compute` gives for n examples, in batches that fit into memory."""
        integer = self._model.loss.label_is_integer
        given = None if self._plan.predicted_labels or labels is None else labels.astype(np.int64 if integer else np.float32)
        while True:
            tried = self._batch_size
            try:
                return self._extract(inputs, given, n, tried)
            except tf.errors.ResourceExhaustedError as error:
                self._halve(error, tried)

    def _extract(self, inputs: Sequence[np.ndarray], labels: np.ndarray | None, n: int, batch_size: int) -> list[np.ndarray]:
        """What `_compute` gives for n examples, batch after batch."""
        parts = []
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            padded = tuple(tf.constant(_pad(array[rows], batch_size)) for array in inputs)
            given = None if labels is None else tf.constant(_pad(labels[rows], batch_size))
            real = (n - start) * (self._model.positions or 1)
            shapes = tuple((array.dtype, *array.shape) for array in (*padded, *([] if given is None else [given])))
            if shapes not in self._traced:
                self._traced[shapes] = self._function.get_concrete_function(padded, given)
            # Views of TensorFlow's memory: `numpy()` would copy it.
            parts.append([np.asarray(tensor)[:real] for tensor in self._traced[shapes](padded, given)])
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
        return extract_features(batch, extractor, self._model.loss.invalid_labels, self._model.positions is not None)


def extract_features(
    batch: ExampleBatch, extractor: FeatureExtractor, invalid_labels: Callable[[np.ndarray], list[str | None]], per_token: bool = False
) -> FeatureBatch:
    """The features of a batch; examples whose label is not one, or whose features are not finite, are set aside.

    With `per_token` an example has a record for each of its positions that counts, or is set aside whole.
    """
    aside = list(batch.rejects)

    def set_aside(reason: str, details: Mapping[int, str]) -> None:
        for i, detail in details.items():
            aside.append(Reject(batch.file.path, int(batch.offsets[i]), batch.example_ids[i].decode(), reason, detail))

    if batch.labels is not None and len(batch) and not per_token:
        wrong = {i: detail for i, detail in enumerate(invalid_labels(batch.labels)) if detail is not None}
        if wrong:
            set_aside(rejects.BAD_LABEL, wrong)
            batch = batch.take(np.delete(np.arange(len(batch)), list(wrong)))
    rows = np.arange(len(batch))
    features = NO_FEATURES
    if len(rows) and per_token:
        features, rows, without = extractor.positions(batch.example_ids, batch.inputs, batch.labels)
        for i, (reason, detail) in without.items():
            set_aside(reason, {i: detail})
    elif len(rows):
        features = extractor(batch.example_ids, batch.inputs, batch.labels)
    if len(rows):
        finite = np.isfinite(features.loss_grad_norms).all(1) & np.isfinite(features.activation_norms).all(1)
        if not finite.all():
            # Of an example all positions or none.
            finite = ~np.isin(rows, rows[~finite])
            detail = f"the model gave a NaN, an infinity or a number beyond {extractor.feature_dtype} for this example"
            set_aside(rejects.NON_FINITE_FEATURES, dict.fromkeys(rows[~finite].tolist(), detail))
            features, rows = features.take(finite), rows[finite]
    kept = take_kept(batch.kept, rows)
    return FeatureBatch(batch.file, features, batch.offsets[rows], batch.digests[rows], kept, aside, batch.first, batch.last)


class _ExtractDoFn(beam.DoFn):
    """Extracts in threads, so that the model computes while the steps before and after it work."""

    def __init__(self, model: Model, plan: ExtractionPlan) -> None:
        self._model = model
        self._plan = plan
        self._extract: Callable[[ExampleBatch, ExtractionPlan], FeatureBatch] | None = None
        self._threads: Threads | None = None
        self._seconds = math.inf

    def setup(self) -> None:
        # Before examples are parsed, which TensorFlow does.
        choose_threads(len(self._model.spec.checkpoints))
        keep_freed_memory()

    def process(self, batch: ExampleBatch) -> Iterator[FeatureBatch]:
        # Not in setup(), whose counters are lost on the in-process runner.
        if self._extract is None:
            self._extract = self._model.extractor()
        if self._threads is None:
            # Another process is asked by one thread, which then finds out by itself that it is gone.
            threads = 1 if self._model.per_machine else _AT_ONCE
            # As many wait, so that none is idle while this one hands results on.
            self._threads = Threads(threads, 2 * threads, "extract")
        yield from self._threads.call(self._timed, batch)
        if self._seconds > _LONG:
            yield from self._threads.rest()

    def finish_bundle(self) -> Iterator[Any]:
        if self._threads is not None:
            yield from map(windowed, self._threads.rest())
            self.teardown()

    def teardown(self) -> None:
        if self._threads is not None:
            self._threads.close()
            self._threads = None

    def _timed(self, batch: ExampleBatch) -> FeatureBatch:
        assert self._extract is not None
        started = time.monotonic()
        extracted = self._extract(batch, self._plan)
        self._seconds = time.monotonic() - started
        counting.add("examples-extracted", len(batch) - (len(extracted.rejects) - len(batch.rejects)))
        counting.add("examples-rejected", len(extracted.rejects))
        return extracted


@dataclasses.dataclass
class ExtractFeatures(beam.PTransform):
    """Runs all checkpoints over batches of examples: ExampleBatch → FeatureBatch."""

    model: Model
    plan: ExtractionPlan

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | "RunCheckpoints" >> beam.ParDo(_ExtractDoFn(self.model, self.plan))  # FeatureBatch


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
        base: a set whose records are copied for examples that did not change, or None.
    """

    input_files: Sequence[InputFile]
    form: ExampleFormat
    model: Model
    plan: ExtractionPlan
    allow_truncated: bool
    write: WriteFeatures
    base: Base | None = None

    def expand(self, pipeline: Any) -> beam.PCollection:
        read = ReadExamples(self.form, self.plan.batch_size, self.allow_truncated)
        extract = ExtractFeatures(self.model, self.plan)
        changed = (
            pipeline
            | "ListFiles" >> beam.Create(list(self.input_files), reshuffle=False)  # InputFile
            | "SpreadFiles" >> beam.Reshuffle()  # InputFile
        )
        written = []
        if self.base:
            unchanged = changed | "FindUnchanged" >> FindUnchanged(self.base, self.form, self.allow_truncated, self.write.directory)
            changed = unchanged["left"]  # InputFile
            written.append(unchanged)
        found = changed | "FindFinished" >> FindFinished(self.write.directory, self.write.attempt)
        written.append(found)
        batches = (
            found["left"]
            | "ReadExamples" >> accelerated(read, self.write.accelerator)  # ExampleBatch
            | "ExtractFeatures" >> accelerated(extract, self.write.accelerator)  # FeatureBatch
        )
        # WrittenPart, (bucket, (file name, rows, hashes))
        parts, ids = (tuple(one[tag] for one in written) | f"Join{tag.title()}" >> beam.Flatten() for tag in (PARTS, IDS))
        return {"batches": batches, PARTS: parts, IDS: ids} | "WriteFeatures" >> self.write  # FeatureManifest
