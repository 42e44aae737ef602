"""Loss gradients and activations of examples, by one TensorFlow function over all checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.models.checkpoints import Checkpoints
from transforms.models.losses.labels import active
from transforms.runtime import counters

# A batch of one goes through another matrix product, whose last bits differ.
_SMALLEST_BATCH = 2


@dataclasses.dataclass(frozen=True)
class ExtractionPlan:
    """How features are extracted.

    Attributes:
        batch_size: examples per call of the model.
        predicted_labels: whether the last checkpoint's prediction serves as label.
        feature_dtype: dtype that loss gradients and activations are rounded to and stored as, one
            of `transforms.core.features.DTYPES`.
    """

    batch_size: int
    predicted_labels: bool = False
    feature_dtype: str = "float32"


class Outputs(NamedTuple):
    """What all checkpoints compute of m rows: examples, or all positions of examples in order.

    Attributes:
        loss_grads: [m, T, C] float32, δ.
        activations: [m, T, D] float32, h, with a trailing 1 where the bias is included.
        predictions: [m, …], of the last checkpoint.
        probabilities: [m], of the predictions.
        label_probabilities: [m, T].
        labels: [m, label_width], given or predicted.
        unmasked: [m, T] bool, whether the model looks at the row.
    """

    loss_grads: np.ndarray
    activations: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    labels: np.ndarray
    unmasked: np.ndarray


class FeatureExtractor:
    """Extracts features of batches of examples with loaded checkpoints.

    Every batch is padded to the plan's batch size, so that the function is traced once. After the
    model has run out of memory, batches are smaller. Features depend on their size at most by
    rounding, as in recurrent layers.

    Attributes:
        model: the checkpoints.
        plan: how features are extracted.
    """

    def __init__(self, model: Checkpoints, plan: ExtractionPlan) -> None:
        self.model = model
        self.plan = plan
        self._batch_size = max(plan.batch_size, _SMALLEST_BATCH)
        # Nothing here needs Python's control flow translated. Nor do layers, for which Keras
        # switches it off.
        self._function = tf.function(self._compute, autograph=False)
        # Traces by dtypes and shapes of their arguments. tf.function itself takes as long as ten
        # examples to find the trace that fits.
        self._traced: dict[tuple[Any, ...], Callable[..., tuple[tf.Tensor, ...]]] = {}

    def __call__(
        self, example_ids: np.ndarray, inputs: Sequence[np.ndarray], labels: np.ndarray | None
    ) -> Features:
        """Extracts the features of n examples.

        Args:
            example_ids: [n] byte strings (dtype S).
            inputs: arrays [n, …], one for each input of the model.
            labels: [n, label_width], or None where they are predicted.

        Raises:
            InputError: the model runs out of memory even with the smallest batch.
        """
        return self.features(example_ids, self.run(inputs, labels, len(example_ids)))

    def run(self, inputs: Sequence[np.ndarray], labels: np.ndarray | None, n: int) -> Outputs:
        """Runs all checkpoints over n examples, in batches that fit into memory.

        Raises:
            InputError: the model runs out of memory even with the smallest batch.
        """
        dtype = np.int64 if self.model.loss.label_is_integer else np.float32
        predicted = self.plan.predicted_labels or labels is None
        typed = None if predicted or labels is None else labels.astype(dtype)
        while True:
            batch_size = self._batch_size
            try:
                return self._run_batches(inputs, typed, n, batch_size)
            except tf.errors.ResourceExhaustedError as error:
                self._halve(error, batch_size)

    def features(self, ids: Sequence[bytes] | np.ndarray, outputs: Outputs) -> Features:
        """Returns outputs [m, …] as the features of m records with these ids [m]."""
        loss = self.model.loss
        multilabel = loss.task == "multilabel"
        return Features.of(
            ids,
            loss.record_labels(outputs.labels),
            active(outputs.predictions) if multilabel else outputs.predictions,
            outputs.probabilities,
            outputs.label_probabilities,
            outputs.loss_grads,
            outputs.activations,
            self.plan.feature_dtype,
        )

    def _compute(
        self, inputs: tuple[tf.Tensor, ...], labels: tf.Tensor | None
    ) -> tuple[tf.Tensor, ...]:
        """Computes the tensors of `Outputs`."""
        model, loss = self.model, self.model.loss
        outputs = [model.logits_and_activations(t, inputs) for t in range(model.size)]
        logits = [z for z, _, _ in outputs]
        if self.plan.predicted_labels:
            labels = loss.predicted_labels(logits[-1])
        labels = tf.reshape(labels, [-1, loss.label_width])
        # For all checkpoints at once: small networks spend as much time on starting operations as
        # on computing them.
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

    def _run_batches(
        self, inputs: Sequence[np.ndarray], labels: np.ndarray | None, n: int, batch_size: int
    ) -> Outputs:
        batches = []
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            padded = tuple(tf.constant(_pad(array[rows], batch_size)) for array in inputs)
            padded_labels = None if labels is None else tf.constant(_pad(labels[rows], batch_size))
            real = (n - start) * (self.model.positions or 1)
            trace = self._trace(padded, padded_labels)
            # Views of TensorFlow's memory: `numpy()` would copy it.
            batches.append([np.asarray(tensor)[:real] for tensor in trace(padded, padded_labels)])
        if len(batches) == 1:
            return Outputs(*batches[0])
        return Outputs(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))

    def _trace(
        self, inputs: tuple[tf.Tensor, ...], labels: tf.Tensor | None
    ) -> Callable[..., tuple[tf.Tensor, ...]]:
        arrays = inputs if labels is None else (*inputs, labels)
        key = tuple((array.dtype, *array.shape) for array in arrays)
        if key not in self._traced:
            self._traced[key] = self._function.get_concrete_function(inputs, labels)
        return self._traced[key]

    def _halve(self, error: tf.errors.ResourceExhaustedError, batch_size: int) -> None:
        """Makes batches smaller, after the model has run out of memory with `batch_size`.

        Raises:
            InputError: they are as small as they can be.
        """
        if self._batch_size < batch_size:
            # Another thread has halved them.
            return
        lines = str(error.message).splitlines()
        reason = next((line.strip() for line in lines if "allocat" in line), lines[0])
        if batch_size == _SMALLEST_BATCH:
            raise InputError(
                f"the model runs out of memory with {_SMALLEST_BATCH} examples at once ({reason}): "
                "use workers with more memory, or a smaller model"
            ) from error
        self._batch_size = max(_SMALLEST_BATCH, batch_size // 2)
        counters.add("batches-halved")
        logging.getLogger(__name__).warning(
            "the model ran out of memory with %d examples at once (%s): going on with %d; "
            "`batch_size=%d` saves the attempt",
            batch_size,
            reason,
            self._batch_size,
            self._batch_size,
        )


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    """Repeats the last row until there are so many rows."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
