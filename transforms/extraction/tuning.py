"""Sizes and thresholds of stage 1 that change its speed and its files, but no feature."""

from __future__ import annotations

import dataclasses

from transforms.extraction.feature_files.part import DEFAULT_LIMITS, FileLimits
from transforms.extraction.reuse.unchanged import RECORDS_PER_BUCKET


@dataclasses.dataclass(frozen=True)
class ExtractionTuning:
    """Sizes and thresholds of stage 1; the default is right for all but tests.

    Attributes:
        batches_at_once: batches that are extracted at once while each takes at most
            `long_batch_seconds`. The Python code around a call of a small model takes nearly as
            long as the call, so two threads keep the model busy; more gain nothing.
        long_batch_seconds: seconds beyond which batches are extracted one after the other: two
            calls of a large model would need twice the memory and gain nothing.
        file_limits: how large feature files become. A reader holds a whole file, so this bounds its
            memory.
        records_per_bucket: examples of a base that are matched at once, about.
    """

    batches_at_once: int = 2
    long_batch_seconds: float = 0.05
    file_limits: FileLimits = DEFAULT_LIMITS
    records_per_bucket: int = RECORDS_PER_BUCKET


DEFAULT_TUNING = ExtractionTuning()
