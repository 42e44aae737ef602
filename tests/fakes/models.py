"""Checkpoints as a pipeline carries them that behave as no real ones do: slow, or dying."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import ClassVar

from transforms.examples.batch import ExampleBatch
from transforms.extraction.feature_files.feature_batch import FeatureBatch
from transforms.extraction.worker.extractor import ExtractionPlan
from transforms.extraction.worker.model import Model


@dataclasses.dataclass(frozen=True)
class SlowModel(Model):
    """Checkpoints that take longer for every other batch of four, and count calls under way.

    Attributes:
        most: how many calls were under way at once, at most, in this process.
    """

    most: ClassVar[int] = 0
    _under_way: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def extractor(self) -> Callable[[ExampleBatch, ExtractionPlan], FeatureBatch]:
        genuine = super().extractor()

        def slow(batch: ExampleBatch, plan: ExtractionPlan) -> FeatureBatch:
            kind = SlowModel
            with kind._lock:
                kind._under_way += 1
                kind.most = max(kind.most, kind._under_way)
            time.sleep(0.02 if batch.offsets[0] % 8 == 0 else 0)
            try:
                return genuine(batch, plan)
            finally:
                with kind._lock:
                    kind._under_way -= 1

        return slow


@dataclasses.dataclass(frozen=True)
class DyingModel(Model):
    """Checkpoints whose worker dies at the first batch of the n-th file that comes to it.

    Attributes:
        dies_at: n; None for never.
    """

    dies_at: ClassVar[int | None] = None
    _begun: ClassVar[list[str]] = []

    def extractor(self) -> Callable[[ExampleBatch, ExtractionPlan], FeatureBatch]:
        genuine = super().extractor()

        def die(batch: ExampleBatch, plan: ExtractionPlan) -> FeatureBatch:
            begun = DyingModel._begun
            begun.extend([batch.file.path] if batch.first else [])
            if len(begun) == DyingModel.dies_at:
                raise RuntimeError("the worker died")
            return genuine(batch, plan)

        return die


def dying_at(n: int) -> type[Model]:
    """Checkpoints whose worker dies at the n-th file from now on."""
    DyingModel.dies_at = n
    DyingModel._begun.clear()
    return DyingModel
