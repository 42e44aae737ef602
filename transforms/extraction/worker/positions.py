"""Features of the positions of examples, for models whose last dense layer works on positions.

Positions count unless they are masked by the model or ignored by the loss. A position's loss
gradient is the gradient of its example's loss, of which Keras's loss of the position is a part. So
the records of an example add up to the example's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transforms.core.features import Features
from transforms.core.ids import record_id
from transforms.examples import rejects
from transforms.extraction.worker.extractor import FeatureExtractor, Outputs
from transforms.models.losses.loss import Loss
from transforms.models.losses.positions import position_weights


class PositionFeatures(NamedTuple):
    """Features of m positions of n examples.

    Attributes:
        features: of the positions, example by example.
        rows: [m] int64, index of each position's example, 0..n−1.
        rejected: by index of a rejected example, reason and detail.
    """

    features: Features
    rows: np.ndarray
    rejected: dict[int, tuple[str, str]]


class _PositionLabels(NamedTuple):
    """Labels of the positions of examples.

    Attributes:
        labels: as given, with zeros where a position is ignored or its label is wrong; None where
            labels are predicted.
        ignored: [positions] bool, whether the loss ignores the position.
        details: [positions], what is wrong with the label, or None.
    """

    labels: np.ndarray | None
    ignored: np.ndarray
    details: list[str | None]


def extract_positions(
    extractor: FeatureExtractor,
    example_ids: np.ndarray,
    inputs: Sequence[np.ndarray],
    labels: np.ndarray | None,
) -> PositionFeatures:
    """Extracts the features of the positions that count, of n examples with P positions each.

    An example is rejected if none of its positions counts, or the label of one that counts is
    wrong.

    Args:
        extractor: runs the checkpoints.
        example_ids: [n] byte strings (dtype S).
        inputs: arrays [n, …], one for each input of the model.
        labels: [n, P · label_width], or None where they are predicted.

    Raises:
        InputError: the model runs out of memory even with the smallest batch.
    """
    loss, n, positions = extractor.model.loss, len(example_ids), extractor.model.positions or 1
    given = _check_labels(labels, loss, n * positions)
    outputs = extractor.run(inputs, given.labels, n)
    counted = outputs.unmasked & ~given.ignored[:, None]
    by_example = counted.reshape(n, positions, -1)
    weights = position_weights(by_example, loss.means_positions).reshape(counted.shape)
    present = counted.any(axis=1)
    rejected = _rejected(present.reshape(n, positions), given)
    kept = np.array(
        [i for i in np.flatnonzero(present).tolist() if i // positions not in rejected], np.int64
    )
    outputs = Outputs(*(array[kept] for array in outputs))
    loss_grads = (outputs.loss_grads * weights[kept][..., None]).astype(np.float32)
    texts = example_ids.tolist()
    ids = [record_id(texts[i // positions], i % positions) for i in kept.tolist()]
    features = extractor.features(ids, outputs._replace(loss_grads=loss_grads))
    return PositionFeatures(features, kept // positions, rejected)


def _check_labels(labels: np.ndarray | None, loss: Loss, positions: int) -> _PositionLabels:
    ignored = np.zeros(positions, bool)
    if labels is None:
        return _PositionLabels(None, ignored, [None] * positions)
    flat = labels.reshape(positions, loss.label_width)
    if loss.ignored_label is not None:
        ignored = flat[:, 0] == loss.ignored_label
    details = loss.invalid_labels(flat)
    usable = np.array([detail is None for detail in details]) & ~ignored
    # Labels at masked positions are ignored, whatever they are: zeros are valid.
    return _PositionLabels(
        np.where(usable[:, None], flat, 0).reshape(labels.shape), ignored, details
    )


def _rejected(present: np.ndarray, given: _PositionLabels) -> dict[int, tuple[str, str]]:
    """Returns reason and detail of the examples to reject; `present` [n, P] says what counts."""
    positions = present.shape[1]
    rejected: dict[int, tuple[str, str]] = {}
    none = "all its positions are masked or ignored by the loss"
    for example in np.flatnonzero(~present.any(axis=1)).tolist():
        rejected[example] = rejects.NO_POSITIONS, none
    for i in np.flatnonzero(present).tolist():
        detail = given.details[i]
        if detail is not None and not given.ignored[i]:
            example, position = divmod(i, positions)
            wrong = f"{detail} (position {position})"
            rejected.setdefault(example, (rejects.BAD_LABEL, wrong))
    return rejected
