"""Loss gradients and activations of batches of examples, by one TensorFlow function over all
checkpoints.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.ids import record_id
from transforms.examples import rejects
from transforms.models.checkpoints import Checkpoints
from transforms.models.losses.labels import active
from transforms.models.losses.positions import position_weights
from transforms.runtime import counters

# A batch of one goes through another matrix product, whose last bits differ.
_SMALLEST_BATCH = 2


@dataclasses.dataclass(frozen=True)
class ExtractionPlan:
    """How features are extracted.

    Attributes:
        batch_size: examples per call of the model.
        predicted_labels: whether the last checkpoint's prediction serves as label.
        feature_dtype: what loss gradients and activations are rounded to and stored as, one of
            `records.DTYPES`.
    """

    batch_size: int
    predicted_labels: bool = False
    feature_dtype: str = "float32"


class FeatureExtractor:
    """Features of batches of examples, by one TensorFlow function over all checkpoints.

    Every batch is padded to the plan's batch size, so that the function is traced once. Where the
    model runs out of memory, batches are halved from there on; features depend on their size at
    most by rounding, as in recurrent layers.
    """

    def __init__(self, model: Checkpoints, plan: ExtractionPlan) -> None:
        self._model = model
        self._plan = plan
        self._batch_size = max(plan.batch_size, _SMALLEST_BATCH)
        # Nothing here needs Python's control flow translated, nor do layers, for which Keras
        # switches it off.
        self._function = tf.function(self._compute, autograph=False)
        # By dtypes and shapes of what a batch is made of. tf.function itself takes as long as ten
        # examples to find the trace that fits.
        self._traced: dict[tuple[Any, ...], Callable[..., tuple[tf.Tensor, ...]]] = {}

    @property
    def feature_dtype(self) -> str:
        """What features are rounded to."""
        return self._plan.feature_dtype

    def _compute(
        self, inputs: tuple[tf.Tensor, ...], labels: tf.Tensor | None
    ) -> tuple[tf.Tensor, ...]:
        model, loss = self._model, self._model.loss
        outputs = [model.logits_and_activations(t, inputs) for t in range(model.size)]
        logits = [z for z, _, _ in outputs]
        if self._plan.predicted_labels:
            labels = loss.predicted_labels(logits[-1])
        labels = tf.reshape(labels, [-1, loss.label_width])
        # Of all checkpoints at once: small networks spend as much time on starting operations as on
        # computing them.
        n, flat = tf.shape(labels)[0], tf.reshape(tf.stack(logits, axis=1), [-1, model.outputs])
        repeated = tf.repeat(labels, model.size, axis=0)
        loss_grads = tf.reshape(loss.loss_grads(flat, repeated), [n, model.size, model.outputs])
        ones = [tf.ones_like(outputs[0][1][:, :1])] if model.include_bias else []
        activations = tf.concat([part for _, h, _ in outputs for part in (h, *ones)], axis=1)
        activations = tf.reshape(activations, [n, model.size, model.units + len(ones)])
        prediction, probability = loss.predict(logits[-1])
        label_probabilities = tf.reshape(loss.label_probability(flat, repeated), [n, model.size])
        unmasked = tf.stack(
            [tf.ones_like(z[:, 0], tf.bool) if mask is None else mask for z, _, mask in outputs],
            axis=1,
        )
        return (
            loss_grads,
            activations,
            prediction,
            probability,
            label_probabilities,
            labels,
            unmasked,
        )

    def __call__(
        self, example_ids: np.ndarray, inputs: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> Features:
        """Extracts the features of examples: ids [n] (dtype S), `inputs` arrays [n, …], `labels`
        [n, label_width] or None where predicted.

        Raises:
            InputError: the model runs out of memory even with the smallest batch.
        """
        arrays = self._run(inputs, labels, len(example_ids))
        return self._features(example_ids, arrays)

    def positions(
        self, example_ids: np.ndarray, inputs: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> tuple[Features, np.ndarray, dict[int, tuple[str, str]]]:
        """Extracts the features of all positions of n examples that are neither masked nor ignored,
        of a model that works on P of them.

        Args:
            example_ids: [n] byte strings (dtype S).
            inputs: arrays [n, …].
            labels: [n, P · label_width], or None where predicted.

        Returns:
            Features of m positions, row by row; the rows [m] of their examples; and, by row, reason
                and details why an example has none.
            A loss gradient is that of the example's loss, of which Keras's loss of the position is
                a part.

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
        weights = position_weights(counted.reshape(n, size, -1), loss.means_positions).reshape(
            counted.shape
        )
        present = counted.any(axis=1)
        without: dict[int, tuple[str, str]] = {}
        for i in np.flatnonzero(~present.reshape(n, size).any(axis=1)).tolist():
            without[i] = rejects.NO_POSITIONS, "all its positions are masked or ignored by the loss"
        for row in np.flatnonzero(present).tolist():
            if details[row] is not None and not ignored[row]:
                without.setdefault(
                    row // size, (rejects.BAD_LABEL, f"{details[row]} (position {row % size})")
                )
        rows = np.array(
            [row for row in np.flatnonzero(present).tolist() if row // size not in without],
            np.int64,
        )
        loss_grads, *others = (array[rows] for array in arrays)
        loss_grads = (loss_grads * weights[rows][..., None]).astype(np.float32)
        texts = example_ids.tolist()
        ids = [record_id(texts[row // size], row % size) for row in rows.tolist()]
        return self._features(ids, [loss_grads, *others]), rows // size, without

    def _features(
        self, ids: Sequence[bytes] | np.ndarray, arrays: Sequence[np.ndarray]
    ) -> Features:
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

    def _run(
        self, inputs: Sequence[np.ndarray], labels: np.ndarray | None, n: int
    ) -> list[np.ndarray]:
        """What `_compute` gives for n examples, in batches that fit into memory."""
        integer = self._model.loss.label_is_integer
        given = (
            None
            if self._plan.predicted_labels or labels is None
            else labels.astype(np.int64 if integer else np.float32)
        )
        while True:
            tried = self._batch_size
            try:
                return self._extract(inputs, given, n, tried)
            except tf.errors.ResourceExhaustedError as error:
                self._halve(error, tried)

    def _extract(
        self, inputs: Sequence[np.ndarray], labels: np.ndarray | None, n: int, batch_size: int
    ) -> list[np.ndarray]:
        """What `_compute` gives for n examples, batch after batch."""
        parts = []
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            padded = tuple(tf.constant(_pad(array[rows], batch_size)) for array in inputs)
            given = None if labels is None else tf.constant(_pad(labels[rows], batch_size))
            real = (n - start) * (self._model.positions or 1)
            shapes = tuple(
                (array.dtype, *array.shape)
                for array in (*padded, *([] if given is None else [given]))
            )
            if shapes not in self._traced:
                self._traced[shapes] = self._function.get_concrete_function(padded, given)
            # Views of TensorFlow's memory: `numpy()` would copy it.
            parts.append(
                [np.asarray(tensor)[:real] for tensor in self._traced[shapes](padded, given)]
            )
        return (
            parts[0]
            if len(parts) == 1
            else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        )

    def _halve(self, error: tf.errors.ResourceExhaustedError, tried: int) -> None:
        """Makes batches smaller from here on, after the model has run out of memory with `tried`
        examples.

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
                f"the model runs out of memory with {_SMALLEST_BATCH} examples at once ({reason}): "
                "use workers with more memory, or a smaller model"
            ) from error
        self._batch_size = max(_SMALLEST_BATCH, tried // 2)
        counters.add("batches-halved")
        logging.getLogger(__name__).warning(
            "the model ran out of memory with %d examples at once (%s): going on with %d; "
            "`batch_size=%d` saves the attempt",
            tried,
            reason,
            self._batch_size,
            self._batch_size,
        )


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
