"""Features of one batch of examples, without the examples that have to be rejected."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from transforms.core.features import Features
from transforms.examples import rejects
from transforms.examples.batch import ExampleBatch, take_kept
from transforms.examples.rejects import Reject
from transforms.extraction.feature_files.feature_batch import NO_FEATURES, FeatureBatch
from transforms.extraction.worker.extractor import ExtractionPlan, FeatureExtractor
from transforms.extraction.worker.positions import extract_positions
from transforms.models.checkpoints import Checkpoints


class Extraction:
    """Extracts batches with loaded checkpoints, for all threads and feature sets of a process."""

    def __init__(self, model: Checkpoints) -> None:
        self._model = model
        self._extractors: dict[ExtractionPlan, FeatureExtractor] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: ExampleBatch, plan: ExtractionPlan) -> FeatureBatch:
        """Extracts a batch as `extract_features`; one extractor serves all batches of a plan."""
        with self._lock:
            if plan not in self._extractors:
                self._extractors[plan] = FeatureExtractor(self._model, plan)
            extractor = self._extractors[plan]
        return extract_features(batch, extractor)


def extract_features(batch: ExampleBatch, extractor: FeatureExtractor) -> FeatureBatch:
    """Extracts the features of a batch.

    Examples are rejected whose label is none of the loss's, or whose features are not finite. Where
    the model works on positions, an example has a record for each position that counts, or is
    rejected as a whole.

    Raises:
        InputError: the model runs out of memory even with the smallest batch.
    """
    rejected = list(batch.rejects)
    if extractor.model.positions is None:
        batch = _reject_labels(batch, extractor, rejected)
    features, rows = _extract(batch, extractor, rejected)
    if len(rows):
        features, rows = _reject_non_finite(batch, features, rows, extractor, rejected)
    return FeatureBatch(
        batch.file,
        features,
        batch.offsets[rows],
        batch.digests[rows],
        take_kept(batch.kept, rows),
        rejected,
        batch.first,
        batch.last,
    )


def _reject_labels(
    batch: ExampleBatch, extractor: FeatureExtractor, rejected: list[Reject]
) -> ExampleBatch:
    """Returns the batch without the examples whose label is wrong, which it adds to `rejected`."""
    if batch.labels is None or not len(batch):
        return batch
    details = extractor.model.loss.invalid_labels(batch.labels)
    wrong = {i: detail for i, detail in enumerate(details) if detail is not None}
    if not wrong:
        return batch
    rejected += _rejects(batch, rejects.BAD_LABEL, wrong)
    return batch.take(np.delete(np.arange(len(batch)), list(wrong)))


def _extract(
    batch: ExampleBatch, extractor: FeatureExtractor, rejected: list[Reject]
) -> tuple[Features, np.ndarray]:
    """Returns the features of m records, and the rows [m] of their examples in the batch."""
    rows = np.arange(len(batch))
    if not len(batch):
        return NO_FEATURES, rows
    if extractor.model.positions is None:
        return extractor(batch.example_ids, batch.inputs, batch.labels), rows
    extracted = extract_positions(extractor, batch.example_ids, batch.inputs, batch.labels)
    for row, (reason, detail) in extracted.rejected.items():
        rejected += _rejects(batch, reason, {row: detail})
    return extracted.features, extracted.rows


def _reject_non_finite(
    batch: ExampleBatch,
    features: Features,
    rows: np.ndarray,
    extractor: FeatureExtractor,
    rejected: list[Reject],
) -> tuple[Features, np.ndarray]:
    """Returns the features and rows whose numbers are finite; adds the others to `rejected`."""
    finite = np.isfinite(features.loss_grad_norms).all(1)
    finite &= np.isfinite(features.activation_norms).all(1)
    if finite.all():
        return features, rows
    # All positions of an example, or none.
    finite = ~np.isin(rows, rows[~finite])
    detail = (
        "the model gave a NaN, an infinity or a number beyond "
        f"{extractor.plan.feature_dtype} for this example"
    )
    details = dict.fromkeys(rows[~finite].tolist(), detail)
    rejected += _rejects(batch, rejects.NON_FINITE_FEATURES, details)
    return features.take(finite), rows[finite]


def _rejects(batch: ExampleBatch, reason: str, details: Mapping[int, str]) -> list[Reject]:
    """Returns rejects of examples of a batch, with a detail for each of their rows."""
    return [
        Reject(
            batch.file.path, int(batch.offsets[i]), batch.example_ids[i].decode(), reason, detail
        )
        for i, detail in details.items()
    ]
