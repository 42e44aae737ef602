"""Features of one batch of examples, rejects set aside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from transforms.examples import rejects
from transforms.examples.batch import ExampleBatch, take_kept
from transforms.examples.rejects import Reject
from transforms.extraction.extractor import ExtractionPlan, FeatureExtractor
from transforms.extraction.feature_files.feature_batch import NO_FEATURES, FeatureBatch
from transforms.models.checkpoints import Checkpoints


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
        return extract_features(
            batch, extractor, self._model.loss.invalid_labels, self._model.positions is not None
        )


def extract_features(
    batch: ExampleBatch,
    extractor: FeatureExtractor,
    invalid_labels: Callable[[np.ndarray], list[str | None]],
    per_token: bool = False,
) -> FeatureBatch:
    """The features of a batch; examples whose label is not one, or whose features are not finite,
    are set aside.

    With `per_token` an example has a record for each of its positions that counts, or is set aside
    whole.
    """
    aside = list(batch.rejects)

    def set_aside(reason: str, details: Mapping[int, str]) -> None:
        for i, detail in details.items():
            aside.append(
                Reject(
                    batch.file.path,
                    int(batch.offsets[i]),
                    batch.example_ids[i].decode(),
                    reason,
                    detail,
                )
            )

    if batch.labels is not None and len(batch) and not per_token:
        wrong = {
            i: detail for i, detail in enumerate(invalid_labels(batch.labels)) if detail is not None
        }
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
        finite = np.isfinite(features.loss_grad_norms).all(1) & np.isfinite(
            features.activation_norms
        ).all(1)
        if not finite.all():
            # Of an example all positions or none.
            finite = ~np.isin(rows, rows[~finite])
            detail = (
                "the model gave a NaN, an infinity or a number beyond "
                f"{extractor.feature_dtype} for this example"
            )
            set_aside(rejects.NON_FINITE_FEATURES, dict.fromkeys(rows[~finite].tolist(), detail))
            features, rows = features.take(finite), rows[finite]
    kept = take_kept(batch.kept, rows)
    return FeatureBatch(
        batch.file,
        features,
        batch.offsets[rows],
        batch.digests[rows],
        kept,
        aside,
        batch.first,
        batch.last,
    )
