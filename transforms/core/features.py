"""Features of examples, as arrays: stage 1 computes them and stage 2 reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from transforms.core.ids import id_array
from transforms.core.summation import norms

# Dtypes that loss gradients and activations may be stored as; float32 holds the numbers of all.
DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

NO_LABEL = -1  # pads lists of class indices to one length


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The features of n examples at T checkpoints.

    Attributes:
        example_ids: [n] byte strings (dtype S), UTF-8.
        labels: [n, L] int64 (class indices, padded with −1) or float64 (values of a regression).
        predictions: [n, P], likewise.
        probabilities: [n] float32, of the last checkpoint's prediction.
        label_probabilities: [n, T] float32.
        loss_grads: [n, T, C] float32.
        activations: [n, T, D] float32, with a trailing 1 where the bias is included.
        loss_grad_norms, activation_norms: [n, T] float64.
    """

    example_ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    loss_grads: np.ndarray
    activations: np.ndarray
    loss_grad_norms: np.ndarray
    activation_norms: np.ndarray

    def __len__(self) -> int:
        return len(self.example_ids)

    def take(self, rows: Any) -> Features:
        """Returns the features of some rows: a slice, an index array or a mask."""
        return Features(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @staticmethod
    def of(
        example_ids: Sequence[bytes] | np.ndarray,
        labels: np.ndarray,
        predictions: np.ndarray,
        probabilities: np.ndarray,
        label_probabilities: np.ndarray,
        loss_grads: np.ndarray,
        activations: np.ndarray,
        feature_dtype: str = "float32",
    ) -> Features:
        """Makes features of arrays: rounds loss gradients and activations to the dtype, and
        computes the norms.
        """
        loss_grads, activations = (
            _rounded(array, feature_dtype) for array in (loss_grads, activations)
        )
        return Features(
            id_array(example_ids),
            labels,
            predictions,
            np.asarray(probabilities, np.float32),
            np.asarray(label_probabilities, np.float32),
            loss_grads,
            activations,
            norms(loss_grads),
            norms(activations),
        )

    @staticmethod
    def from_arrays(
        loss_grads: np.ndarray,
        activations: np.ndarray,
        example_ids: Sequence[bytes] | None = None,
        labels: np.ndarray | None = None,
    ) -> Features:
        """Makes features of nothing but arrays, for scores and the top k.

        Args:
            loss_grads: [n, T, C] of any float type.
            activations: [n, T, D], with a trailing 1 where the bias counts.
            example_ids: [n], or None for the row numbers.
            labels: [n] integers, or None; neither scores nor ranks depend on them.

        Raises:
            ValueError: the shapes do not fit each other.
        """
        shapes = loss_grads.shape, activations.shape
        if len(shapes[0]) != 3 or len(shapes[1]) != 3 or shapes[0][:2] != shapes[1][:2]:
            raise ValueError(
                f"loss gradients have the shape {shapes[0]} and activations {shapes[1]}, expected "
                "[n, T, C] and [n, T, D]"
            )
        n, checkpoints = shapes[0][:2]
        ids = [b"%d" % row for row in range(n)] if example_ids is None else example_ids
        column = np.full(n, NO_LABEL) if labels is None else np.asarray(labels)
        column = column.astype(np.int64).reshape(n, 1)
        unknown = np.full((n, checkpoints), np.nan, np.float32)
        return Features.of(
            ids, column, column, np.full(n, np.nan), unknown, loss_grads, activations
        )

    @staticmethod
    def concatenate(parts: Sequence[Features]) -> Features:
        """Returns the rows of `parts` (at least one), one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = {}
        for field in dataclasses.fields(Features):
            arrays = [getattr(part, field.name) for part in parts]
            columns[field.name] = (
                concatenate_labels(arrays)
                if field.name in ("labels", "predictions")
                else np.concatenate(arrays)
            )
        return Features(**columns)


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns the nearest float32 numbers that the dtype holds; infinity for numbers beyond it."""
    with np.errstate(over="ignore"):
        stored = array.astype(DTYPES[dtype], copy=False)
    return np.ascontiguousarray(stored, np.float32)


def concatenate_labels(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns label arrays [n_i, L_i], one after the other, padded to the longest L with
    `NO_LABEL`.
    """
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=NO_LABEL)
            if part.shape[1] < width
            else part
            for part in parts
        ]
    )
