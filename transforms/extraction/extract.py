"""The step that runs all checkpoints over batches of examples."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam

from transforms.examples.batch import ExampleBatch
from transforms.extraction.feature_files.feature_batch import FeatureBatch
from transforms.extraction.feature_files.steps import windowed
from transforms.extraction.tuning import DEFAULT_TUNING, ExtractionTuning
from transforms.extraction.worker.extractor import ExtractionPlan
from transforms.extraction.worker.model import Model, choose_threads
from transforms.runtime import counters
from transforms.runtime.allocation import keep_freed_memory
from transforms.runtime.threads import Threads


class _ExtractDoFn(beam.DoFn):
    """Extracts in threads, so that the model computes while the steps before and after it work."""

    def __init__(self, model: Model, plan: ExtractionPlan, tuning: ExtractionTuning) -> None:
        self._model = model
        self._plan = plan
        self._tuning = tuning
        self._extract: Callable[[ExampleBatch, ExtractionPlan], FeatureBatch] | None = None
        self._threads: Threads | None = None
        # Seconds that the latest batch took.
        self._seconds = math.inf

    def setup(self) -> None:
        # Before TensorFlow parses the first examples, after which its threads are fixed.
        choose_threads(len(self._model.spec.checkpoints))
        keep_freed_memory()

    def process(self, batch: ExampleBatch) -> Iterator[FeatureBatch]:
        # Not in setup(), whose counters are lost on the in-process runner.
        if self._extract is None:
            self._extract = self._model.extractor()
        if self._threads is None:
            # One thread asks another process. It notices by itself when that process is gone.
            threads = 1 if self._model.per_machine else self._tuning.batches_at_once
            # As many batches wait, so that no thread is idle while results are handed on.
            self._threads = Threads(threads, 2 * threads, "extract")
        yield from self._threads.call(self._timed, batch)
        if self._seconds > self._tuning.long_batch_seconds:
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
        features = self._extract(batch, self._plan)
        self._seconds = time.monotonic() - started
        rejected = len(features.rejects) - len(batch.rejects)
        counters.add("examples-extracted", len(batch) - rejected)
        counters.add("examples-rejected", len(features.rejects))
        return features


@dataclasses.dataclass
class RunCheckpoints(beam.PTransform):
    """Runs all checkpoints over batches of examples: ExampleBatch → FeatureBatch, in order.

    Attributes:
        model: the checkpoints.
        plan: how features are extracted.
        tuning: how many batches are extracted at once.
    """

    model: Model
    plan: ExtractionPlan
    tuning: ExtractionTuning = DEFAULT_TUNING

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        extract = _ExtractDoFn(self.model, self.plan, self.tuning)
        return batches | "RunCheckpoints" >> beam.ParDo(extract)  # FeatureBatch
