"""Rules for labels, with reasons why a label breaks one."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

# How far the sum of class probabilities may be from 1: room for probabilities that were rounded, to
# half precision or to a few decimals.
_SUM_TOLERANCE = 1e-3


class LabelRule(enum.Enum):
    """Values that a label may have.

    The rule belongs to the loss, not to the task: binary cross-entropy after a softmax takes
    several ones.
    """

    INDEX = "index"
    """One class index, 0..C−1."""
    DISTRIBUTION = "distribution"
    """C class probabilities, which sum to 1."""
    FRACTIONS = "fractions"
    """C numbers within 0..1."""
    SIGNED_ONE_HOT = "signed one-hot"
    """C numbers, exactly one 1, the others −1 or 0."""
    SIGNS = "signs"
    """C numbers, each −1, 0 or 1."""
    FINITE = "finite"
    """C finite numbers."""


def invalid_labels(labels: np.ndarray, rule: LabelRule, outputs: int) -> list[str | None]:
    """Returns for each label the reason why it breaks the rule.

    Args:
        labels: `[n, label_width]`, any numeric dtype.
        rule: the rule for each label.
        outputs: C, the number of classes of an index.

    Returns:
        n reasons; None where the label is valid.
    """
    valid = _valid(labels, rule, outputs)
    if valid.all():
        return [None] * len(labels)
    return [
        None if usable else _reason(label, rule, outputs)
        for usable, label in zip(valid, labels, strict=True)
    ]


def _valid(labels: np.ndarray, rule: LabelRule, outputs: int) -> np.ndarray:
    """Returns `[n]` bool, whether each label follows the rule."""
    # A NaN fails every comparison, so each rule also refuses numbers that are not finite.
    if rule is LabelRule.INDEX:
        good = (labels >= 0) & (labels < outputs) & (labels == np.floor(labels))
    elif rule is LabelRule.DISTRIBUTION:
        good = (labels >= 0) & (labels <= np.inf)
    elif rule is LabelRule.FRACTIONS:
        good = (labels >= 0) & (labels <= 1)
    elif rule in (LabelRule.SIGNED_ONE_HOT, LabelRule.SIGNS):
        good = (labels == -1) | (labels == 0) | (labels == 1)
    else:
        good = np.isfinite(labels)
    valid = good.all(axis=1)
    if rule is LabelRule.DISTRIBUTION:
        with np.errstate(invalid="ignore", over="ignore"):
            valid &= np.abs(labels.sum(axis=1, dtype=np.float64) - 1) <= _SUM_TOLERANCE
    elif rule is LabelRule.SIGNED_ONE_HOT:
        valid &= (labels == 1).sum(axis=1) == 1
    return valid


def _reason(label: np.ndarray, rule: LabelRule, outputs: int) -> str:
    """Describes why a label `[label_width]` breaks the rule, which it does."""
    finite = np.isfinite(label)
    if not finite.all():
        return f"label {_number(label[~finite][0])} is not finite"
    if rule is LabelRule.INDEX:
        if label[0] != np.floor(label[0]):
            return f"label {_number(label[0])} is not a whole number, expected a class index"
        return f"label {_number(label[0])} is outside 0..{outputs - 1}"
    if rule is LabelRule.DISTRIBUTION:
        if (label < 0).any():
            return (
                f"label holds {_number(label[label < 0][0])}, expected class probabilities, none "
                "negative"
            )
        total = float(label.sum(dtype=np.float64))
        return f"label sums to {total:.6g}, expected class probabilities that sum to 1"
    if rule is LabelRule.FRACTIONS:
        outside = label[(label < 0) | (label > 1)][0]
        return f"label holds {_number(outside)}, expected numbers within 0..1"
    other = label[~np.isin(label, (-1, 0, 1))]
    if other.size:
        return f"label holds {_number(other[0])}, expected -1, 0 or 1"
    return f"label holds {int((label == 1).sum())} ones, expected exactly one"


def active(multi_hot: np.ndarray) -> np.ndarray:
    """Returns the indices of the non-zero entries of each row.

    Args:
        multi_hot: `[n, C]`.

    Returns:
        `[n, L]` int64, ascending, padded with −1; L is the largest number in a row, at least 1.
    """
    on = np.asarray(multi_hot) != 0
    counts = on.sum(axis=1)
    out = np.full((len(on), max(1, int(counts.max(initial=0)))), -1, np.int64)
    out[np.arange(out.shape[1]) < counts[:, None]] = np.nonzero(on)[1]
    return out


def _number(value: Any) -> str:
    """Formats a label's number without a needless fraction."""
    value = float(value)
    whole = np.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value)) if whole else f"{value:.6g}"
