"""The step that runs all checkpoints over batches of examples."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam

from transforms.examples.batch import ExampleBatch
from transforms.extraction.extractor import ExtractionPlan
from transforms.extraction.feature_batch import FeatureBatch
from transforms.extraction.feature_files import windowed
from transforms.extraction.model import Model, choose_threads
from transforms.runtime import counters
from transforms.runtime.allocation import keep_freed_memory
from transforms.runtime.threads import Threads

# So many batches are extracted at once where one takes fewer seconds: what stands around a call of
# the model, in Python, then takes nearly as long as the call. Of a larger model two would need
# twice the memory and gain nothing.
_AT_ONCE, _LONG = 2, 0.05


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
            # Another process is asked by one thread, which then finds out by itself that it is
            # gone.
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
        counters.add(
            "examples-extracted", len(batch) - (len(extracted.rejects) - len(batch.rejects))
        )
        counters.add("examples-rejected", len(extracted.rejects))
        return extracted


@dataclasses.dataclass
class RunCheckpoints(beam.PTransform):
    """Runs all checkpoints over batches of examples: ExampleBatch → FeatureBatch."""

    model: Model
    plan: ExtractionPlan

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | "RunCheckpoints" >> beam.ParDo(
            _ExtractDoFn(self.model, self.plan)
        )  # FeatureBatch
