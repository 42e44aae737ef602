"""The loss of an example as a function of the C logits of the last dense layer.

A `Loss` gives the loss gradient, the prediction and probabilities, and checks labels. It is made by
`compiled_losses.resolve`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.models.losses import labels as label_rules
from transforms.models.losses import loss_gradients
from transforms.models.losses.labels import LabelRule, active


class Formula(enum.Enum):
    """How the loss gradient is computed: by a closed form of `loss_gradients`, or by the tape."""

    SOFTMAX_CROSS_ENTROPY = "softmax cross-entropy"
    SIGMOID_CROSS_ENTROPY = "sigmoid cross-entropy"
    MEAN_SQUARED_ERROR = "mean squared error"
    AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Loss:
    """A loss over C logits, with the softmax or sigmoid that follows them folded in.

    Two losses with the same `description` and `outputs` are the same function. A loss pickles as
    the arguments of `resolve`, so custom code has to be imported before it is unpickled.
    """

    task: str
    """Meaning of a label and a prediction: `class`, `binary`, `multilabel` or `regression`."""
    outputs: int
    """C, the number of logits."""
    activation: str
    """Activation that follows the logits in the model: `linear`, `softmax` or `sigmoid`."""
    description: str
    """The loss, its arguments and the activation in one canonical line; part of fingerprints."""
    ignored_label: int | None
    """With positions: the class index that makes a position not count; None if there is none."""
    means_positions: bool
    """With positions: whether an example's loss is the mean over those that count, or their sum."""
    label_rule: LabelRule = field(repr=False)
    """Values that a label may have."""
    formula: Formula = field(repr=False)
    """How the loss gradient is computed."""
    label_smoothing: float = field(repr=False)
    """Keras's argument of that name; 0 where the loss has none."""
    weight: float = field(repr=False)
    """The loss weight that the model was compiled with; multiplies gradients, not `values`."""
    detached: bool = field(repr=False, compare=False)
    """Whether Keras finds probabilities only, and not the logits that they are made of."""
    keras_loss: Any = field(repr=False, compare=False)
    """The Keras loss, an instance."""
    arguments: tuple[Any, ...] = field(repr=False, compare=False)
    """The arguments of `resolve` that gave this loss."""

    @property
    def label_is_integer(self) -> bool:
        """Whether a label is a class index."""
        return self.label_rule is LabelRule.INDEX

    @property
    def label_width(self) -> int:
        """Numbers in a label: 1 for a class index, a 0/1 label or a scalar target, else C."""
        return 1 if self.label_is_integer else self.outputs

    # Labels

    def invalid_labels(self, labels: np.ndarray) -> list[str | None]:
        """Returns for each label the reason why the loss cannot take it.

        Args:
            labels: `[n, label_width]`, any numeric dtype.

        Returns:
            n reasons; None where the label is valid.
        """
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.shape[1] != self.label_width:
            raise ValueError(f"labels have shape {labels.shape}, expected [n, {self.label_width}]")
        return label_rules.invalid_labels(labels, self.label_rule, self.outputs)

    def record_labels(self, labels: np.ndarray) -> np.ndarray:
        """Returns the label fields of feature records.

        Args:
            labels: `[n, label_width]`, valid ones.

        Returns:
            `[n, 1]` int64 for `class` (the index; the largest entry of a soft label) and `binary`
            (0 or 1); `[n, L]` int64 for `multilabel` (indices of the labels ≥ 0.5, padded with −1);
            `[n, C]` float32 for `regression`.
        """
        labels = np.asarray(labels)
        if self.task == "class":
            indices = labels if self.label_is_integer else labels.argmax(axis=1)[:, None]
            return indices.astype(np.int64)
        if self.task == "binary":
            return (labels >= 0.5).astype(np.int64)
        if self.task == "multilabel":
            return active(labels >= 0.5)
        return labels.astype(np.float32)

    def check_label_mode(self, mode: str) -> None:
        """Checks that labels can be obtained the way that `labels` names.

        Args:
            mode: `given` or `predicted`.

        Raises:
            InputError: the mode is unknown, or predictions cannot serve as labels.
        """
        if mode not in ("given", "predicted"):
            raise InputError(f"`labels` must be given or predicted, found {mode!r}.")
        if mode == "predicted" and self.task == "regression":
            raise InputError(
                f"`labels=predicted` needs a model of classes, but the loss is {self.description}: "
                "the gradient at a regression's own prediction is zero; pass `labels=given`."
            )

    # Loss and loss gradient

    def loss_grads(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Computes δ, the gradient of each example's weighted loss with respect to its logits.

        `loss_gradients` holds the formulas. Closed forms are computed in float64 and rounded once.

        Args:
            logits: `[n, C]` float32.
            labels: `[n, label_width]`, valid ones.

        Returns:
            `[n, C]` float32.
        """
        logits = tf.convert_to_tensor(logits)
        labels = tf.reshape(tf.convert_to_tensor(labels), [-1, self.label_width])
        if self.formula is Formula.AUTOMATIC:
            grads = loss_gradients.automatic(self.values, tf.cast(logits, tf.float32), labels)
            return grads if self.weight == 1 else grads * tf.constant(self.weight, tf.float32)
        z = tf.cast(logits, tf.float64)
        if self.formula is Formula.SOFTMAX_CROSS_ENTROPY:
            grads = loss_gradients.softmax_cross_entropy(
                z, labels, self.label_smoothing, self.label_is_integer
            )
        elif self.formula is Formula.SIGMOID_CROSS_ENTROPY:
            grads = loss_gradients.sigmoid_cross_entropy(z, labels, self.label_smoothing)
        else:
            grads = loss_gradients.mean_squared_error(z, labels)
        return tf.cast(grads * self.weight, tf.float32)

    def values(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Computes the Keras loss of each example, without the loss weight.

        Args:
            logits: `[n, C]` float32.
            labels: `[n, label_width]`.

        Returns:
            `[n]` float32.
        """
        labels = tf.cast(tf.convert_to_tensor(labels), tf.float32)
        if self.label_is_integer:
            labels = labels[:, 0]
        if self.label_rule is LabelRule.SIGNS:
            # Keras turns 0 into −1 only if the whole batch holds zeros and ones; an example's loss
            # must not depend on its batch.
            labels = tf.where(labels == 0, -1.0, labels)
        values = self.keras_loss.call(labels, self.model_output(logits))
        return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))

    def model_output(self, logits: tf.Tensor) -> tf.Tensor:
        """Applies the activation to logits `[…, C]`, as the model hands its output to the loss."""
        output = tf.convert_to_tensor(logits)
        if self.activation == "linear":
            return output
        # Keras's own activation leaves the logits on its result, where Keras's cross-entropies
        # find and use them.
        output = getattr(keras.activations, self.activation)(output)
        return tf.identity(output) if self.detached else output

    # Predictions and probabilities

    def predict(self, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the model's prediction and its probability.

        Args:
            logits: `[n, C]` float32.

        Returns:
            The prediction: `[n, 1]` int64 for `class` and `binary`, `[n, C]` int64 of zeros and
            ones for `multilabel` (see `active`), `[n, C]` float32 for `regression`. Its
            probability `[n]` float32: of the class or the bit; the geometric mean over the outputs
            for `multilabel`; NaN for `regression` and for a hinge on linear outputs, which models
            none.
        """
        logits = tf.convert_to_tensor(logits)
        if self.task == "regression":
            return tf.cast(logits, tf.float32), _nans(logits)
        if self.task == "class":
            prediction = tf.argmax(logits, axis=1, output_type=tf.int64)[:, None]
            return prediction, self._class_probability(logits, prediction[:, 0])
        bits = tf.cast(logits >= 0, tf.int64)
        return bits, _bits_probability(logits, bits)

    def predicted_labels(self, logits: tf.Tensor) -> tf.Tensor:
        """Computes the model's prediction in the form of a label.

        Args:
            logits: `[n, C]` float32.

        Returns:
            `[n, label_width]`: int64 where a label is a class index, else float32.

        Raises:
            InputError: for a regression.
        """
        self.check_label_mode("predicted")
        prediction, _ = self.predict(logits)
        if self.task == "class" and not self.label_is_integer:
            return tf.one_hot(prediction[:, 0], self.outputs, dtype=tf.float32)
        return prediction if self.label_is_integer else tf.cast(prediction, tf.float32)

    def label_probability(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Computes the probability that the model gives to the label.

        Args:
            logits: `[n, C]` float32.
            labels: `[n, label_width]`, valid ones; they are rounded as in `record_labels`.

        Returns:
            `[n]` float32, as in `predict`.
        """
        logits, labels = tf.convert_to_tensor(logits), tf.convert_to_tensor(labels)
        if self.task == "regression":
            return _nans(logits)
        if self.task == "class":
            if self.label_is_integer:
                index = tf.cast(labels[:, 0], tf.int64)
            else:
                index = tf.argmax(labels, axis=1)
            return self._class_probability(logits, index)
        return _bits_probability(logits, tf.cast(tf.cast(labels, tf.float32) >= 0.5, tf.int64))

    def _class_probability(self, logits: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Returns softmax(logits) `[n]` at class indices `[n]`; NaN for a hinge on scores."""
        if self.label_rule is LabelRule.SIGNED_ONE_HOT and self.activation == "linear":
            return _nans(logits)
        return tf.gather(tf.nn.softmax(tf.cast(logits, tf.float32)), index, axis=1, batch_dims=1)


def _bits_probability(logits: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Returns the geometric mean `[n]` over outputs of the probabilities of bits `[n, C]`."""
    sign = 2 * tf.cast(bits, tf.float32) - 1
    return tf.exp(tf.reduce_mean(tf.math.log_sigmoid(sign * tf.cast(logits, tf.float32)), axis=1))


def _nans(logits: tf.Tensor) -> tf.Tensor:
    return tf.fill([tf.shape(logits)[0]], tf.constant(np.nan, tf.float32))
