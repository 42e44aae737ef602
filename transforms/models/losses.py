"""The compiled loss as a function of the logits of the last dense layer.

The *loss gradient* δ = ∂ℓ/∂logits is one of the two factors of an example's gradient (the other is
the layer's input). Cross-entropies and the mean squared error have closed forms here, which keep
their precision on confident examples; every other Keras loss is differentiated automatically.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError, first_line

ACTIVATIONS = ("linear", "softmax", "sigmoid")

# What a label may be. A rule belongs to the loss, not to the task: binary cross-entropy takes
# several ones on a softmax head.
_INDEX = "index"
_DISTRIBUTION = "distribution"
_UNIT = "unit"
_SIGNED_ONE_HOT = "signed one-hot"
_SIGN = "sign"
_FINITE = "finite"
# How far the sum of a soft label may be from 1.
_SUM_TOLERANCE = 1e-3
# Arguments of a Keras loss that do not change the loss of one example.
_NOT_MATHEMATICAL = ("name", "reduction", "dtype")


@dataclass(frozen=True)
class Loss:
    """A per-example loss over C logits, with the softmax or sigmoid that follows them folded in.

    Two losses with the same `description` and `outputs` are the same function. A loss pickles as
    the arguments of `resolve`, so custom code has to be imported before it is unpickled.
    """

    task: str
    """What a label and a prediction mean: `class`, `binary`, `multilabel` or `regression`."""
    outputs: int
    """C, the number of logits."""
    activation: str
    """What follows the logits in the model: `linear`, `softmax` or `sigmoid`."""
    description: str
    """The loss, its arguments and the activation in one canonical line; part of fingerprints."""
    label_width: int
    """Numbers in an example's label: 1 for a class index, a 0/1 label or a scalar target, else C."""
    label_is_integer: bool
    """Whether a label is a class index."""
    ignored_label: int | None
    """With positions: the class index that makes a position not count; None if there is none."""
    means_positions: bool
    """With positions: whether an example's loss is the mean over those that count, or their sum."""
    _rule: str = field(repr=False)
    _kind: str = field(repr=False)
    _smoothing: float = field(repr=False)
    _scale: float = field(repr=False)
    _detached: bool = field(repr=False, compare=False)
    _keras_loss: Any = field(repr=False, compare=False)
    _arguments: tuple[Any, ...] = field(repr=False, compare=False)

    def __reduce__(self) -> tuple[Callable[..., Loss], tuple[Any, ...]]:
        return resolve, self._arguments

    # Labels

    def invalid_labels(self, labels: np.ndarray) -> list[str | None]:
        """Says for each label why the loss cannot take it.

        Args:
            labels: `[n, label_width]`, any numeric dtype.

        Returns:
            n reasons; None where the label is usable.
        """
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.shape[1] != self.label_width:
            raise ValueError(f"labels have shape {labels.shape}, expected [n, {self.label_width}]")
        # A NaN fails every comparison, so each rule also refuses what is not finite.
        if self._rule == _INDEX:
            good = (labels >= 0) & (labels < self.outputs) & (labels == np.floor(labels))
        elif self._rule in (_DISTRIBUTION, _UNIT):
            good = (labels >= 0) & (labels <= (np.inf if self._rule == _DISTRIBUTION else 1))
        elif self._rule in (_SIGNED_ONE_HOT, _SIGN):
            good = (labels == -1) | (labels == 0) | (labels == 1)
        else:
            good = np.isfinite(labels)
        rows = good.all(axis=1)
        if self._rule == _DISTRIBUTION:
            with np.errstate(invalid="ignore", over="ignore"):
                rows &= np.abs(labels.sum(axis=1, dtype=np.float64) - 1) <= _SUM_TOLERANCE
        elif self._rule == _SIGNED_ONE_HOT:
            rows &= (labels == 1).sum(axis=1) == 1
        if rows.all():
            return [None] * len(labels)
        return [
            None if usable else self._reason(row) for usable, row in zip(rows, labels, strict=True)
        ]

    def _reason(self, label: np.ndarray) -> str:
        """Says why one label `[label_width]`, already known to be unusable, is."""
        finite = np.isfinite(label)
        if not finite.all():
            return f"label {_number(label[~finite][0])} is not finite"
        if self._rule == _INDEX:
            if label[0] != np.floor(label[0]):
                return f"label {_number(label[0])} is not a whole number, expected a class index"
            return f"label {_number(label[0])} is outside 0..{self.outputs - 1}"
        if self._rule == _DISTRIBUTION:
            if (label < 0).any():
                return (
                    f"label holds {_number(label[label < 0][0])}, expected class probabilities, "
                    "none negative"
                )
            total = float(label.sum(dtype=np.float64))
            return f"label sums to {total:.6g}, expected class probabilities that sum to 1"
        if self._rule == _UNIT:
            return (
                f"label holds {_number(label[(label < 0) | (label > 1)][0])}, expected numbers "
                "within 0..1"
            )
        other = label[~np.isin(label, (-1, 0, 1))]
        if other.size:
            return f"label holds {_number(other[0])}, expected -1, 0 or 1"
        return f"label holds {int((label == 1).sum())} ones, expected exactly one"

    def record_labels(self, labels: np.ndarray) -> np.ndarray:
        """Gives what a record's label field holds.

        Args:
            labels: `[n, label_width]`, usable ones.

        Returns:
            `[n, 1]` int64 for `class` (the index; the largest entry of a soft label) and `binary`
                (0 or 1); `[n, L]`
            int64 for `multilabel` (indices of the labels ≥ 0.5, padded with −1); `[n, C]` float32
                for `regression`.
        """
        labels = np.asarray(labels)
        if self.task == "class":
            return (labels if self.label_is_integer else labels.argmax(axis=1)[:, None]).astype(
                np.int64
            )
        if self.task == "binary":
            return (labels >= 0.5).astype(np.int64)
        if self.task == "multilabel":
            return active(labels >= 0.5)
        return labels.astype(np.float32)

    def check_label_mode(self, mode: str) -> None:
        """Raises InputError if labels cannot be had that way.

        Args:
            mode: `given` or `predicted`.
        """
        if mode not in ("given", "predicted"):
            raise InputError(f"`labels` must be given or predicted, found {mode!r}.")
        if mode == "predicted" and self.task == "regression":
            raise InputError(
                f"`labels=predicted` needs a model of classes, but the loss is {self.description}: "
                "the gradient at a regression's own prediction is zero; pass `labels=given`."
            )

    # Gradients

    def loss_grads(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Computes δ, the gradient of each example's loss with respect to its logits.

        Softmax cross-entropy: δ = p·Σq − q, whose component at y = argmax q is −Σ_{j≠y} δ_j,
        because p_y − q_y cancels to 0 on a confident example. Sigmoid cross-entropy: δ = ((1 −
        q)·σ(z) − q·σ(−z)) / C. Mean squared error: δ = 2(z − y) / C. These are computed in float64
        and rounded once. Other losses: automatic differentiation of the Keras loss in float32.

        Args:
            logits: `[n, C]` float32.
            labels: `[n, label_width]`, usable ones.

        Returns:
            `[n, C]` float32.
        """
        logits = tf.convert_to_tensor(logits)
        labels = tf.reshape(tf.convert_to_tensor(labels), [-1, self.label_width])
        if self._kind == "automatic":
            grads = self._automatic_grads(tf.cast(logits, tf.float32), labels)
            return grads if self._scale == 1 else grads * tf.constant(self._scale, tf.float32)
        z = tf.cast(logits, tf.float64)
        if self._kind == "softmax":
            grads = self._softmax_grads(z, labels)
        elif self._kind == "sigmoid":
            q = tf.cast(labels, tf.float64) * (1 - self._smoothing) + self._smoothing / 2
            grads = ((1 - q) * tf.sigmoid(z) - q * tf.sigmoid(-z)) / self.outputs
        else:
            grads = 2 * (z - tf.cast(labels, tf.float64)) / self.outputs
        return tf.cast(grads * self._scale, tf.float32)

    def _softmax_grads(self, z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Computes δ `[n, C]` of softmax cross-entropy from logits `[n, C]`, both float64."""
        if self.label_is_integer:
            label = tf.cast(labels[:, 0], tf.int64)
            q = at_label = tf.one_hot(label, self.outputs, dtype=tf.float64)
            mass = tf.ones_like(z[:, :1])
        else:
            q = tf.cast(labels, tf.float64) * (1 - self._smoothing) + self._smoothing / self.outputs
            at_label = tf.one_hot(tf.argmax(q, axis=1), self.outputs, dtype=tf.float64)
            mass = tf.reduce_sum(q, axis=1, keepdims=True)
        others = (tf.nn.softmax(z) * mass - q) * (1 - at_label)
        return others - at_label * tf.reduce_sum(others, axis=1, keepdims=True)

    def _automatic_grads(self, z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Differentiates the Keras loss through the activation, float32 `[n, C]`."""
        with tf.GradientTape() as tape:
            tape.watch(z)
            # The examples of a batch do not depend on each other (`resolve` has checked), so the
            # sum's gradient is each one's own.
            total = tf.reduce_sum(self.values(z, labels))
        return tape.gradient(total, z, unconnected_gradients=tf.UnconnectedGradients.ZERO)

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
        if self._rule == _SIGN:
            # Keras turns 0 into −1 only if the whole batch holds zeros and ones; an example's loss
            # must not depend on its batch.
            labels = tf.where(labels == 0, -1.0, labels)
        output = tf.convert_to_tensor(logits)
        if self.activation != "linear":
            # Keras's own activation leaves the logits on its result, where Keras's cross-entropies
            # find and use them.
            output = getattr(keras.activations, self.activation)(output)
            if self._detached:
                output = tf.identity(output)
        values = self._keras_loss.call(labels, output)
        return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))

    # Predictions

    @property
    def _family(self) -> str:
        """What turns logits into probabilities."""
        if self.task in ("binary", "multilabel"):
            return "sigmoid"
        if self.task == "class" and not (
            self._rule == _SIGNED_ONE_HOT and self.activation == "linear"
        ):
            return "softmax"
        return "none"

    def predict(self, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Gives what the model says and how sure it is.

        Args:
            logits: `[n, C]` float32.

        Returns:
            The prediction: `[n, 1]` int64 for `class` and `binary`, `[n, C]` int64 of zeros and
                ones for `multilabel`
            (see `active`), `[n, C]` float32 for `regression`. Its probability `[n]` float32: of the
                class or the bit;
            the geometric mean over the outputs for `multilabel`; NaN for `regression` and for a
                hinge on linear
            outputs, which models none.
        """
        logits = tf.convert_to_tensor(logits)
        if self.task == "regression":
            return tf.cast(logits, tf.float32), _nans(logits)
        if self.task == "class":
            prediction = tf.argmax(logits, axis=1, output_type=tf.int64)[:, None]
            return prediction, self._class_probability(logits, prediction[:, 0])
        bits = tf.cast(logits >= 0, tf.int64)
        return bits, self._bits_probability(logits, bits)

    def predicted_labels(self, logits: tf.Tensor) -> tf.Tensor:
        """Gives the prediction in the form of a label.

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
            labels: `[n, label_width]`, usable ones; what counts is what `record_labels` makes of
                them.

        Returns:
            `[n]` float32, as in `predict`.
        """
        logits, labels = tf.convert_to_tensor(logits), tf.convert_to_tensor(labels)
        if self.task == "regression":
            return _nans(logits)
        if self.task == "class":
            index = (
                tf.cast(labels[:, 0], tf.int64)
                if self.label_is_integer
                else tf.argmax(labels, axis=1)
            )
            return self._class_probability(logits, index)
        return self._bits_probability(logits, tf.cast(tf.cast(labels, tf.float32) >= 0.5, tf.int64))

    def _class_probability(self, logits: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Gives softmax(logits) `[n]` at the class indices `[n]`."""
        if self._family == "none":
            return _nans(logits)
        return tf.gather(tf.nn.softmax(tf.cast(logits, tf.float32)), index, axis=1, batch_dims=1)

    def _bits_probability(self, logits: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
        """Gives the geometric mean `[n]` over the outputs of the probabilities of the bits `[n,
        C]`.
        """
        sign = 2 * tf.cast(bits, tf.float32) - 1
        return tf.exp(
            tf.reduce_mean(tf.math.log_sigmoid(sign * tf.cast(logits, tf.float32)), axis=1)
        )


def active(multi_hot: np.ndarray) -> np.ndarray:
    """Gives the indices of the non-zero entries of each row.

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


def resolve(
    compiled: Any | None,
    override: str | None,
    activation: str,
    outputs: int,
    loss_weights: Any | None = None,
    detached: bool = False,
    per_token: bool = False,
) -> Loss:
    """Finds the loss that a model was compiled with, or that `loss` names.

    Args:
        compiled: `compile_config["loss"]` of a .keras archive: a name, a serialized loss, or a list
            or dict with one of them.
        override: the value of `loss`: a Keras loss by name, with keyword literals if wanted, or
            `package>name` of a registered one.
        activation: what follows the logits in the model: `linear`, `softmax` or `sigmoid`.
        outputs: C.
        loss_weights: `compile_config["loss_weights"]`: None, a number, or a list or dict with one
            number.
        detached: something stands between the activation and the loss (a reshape, a cast to
            float32), so that Keras does not find the logits and takes `from_logits=True` at its
            word even after a softmax.
        per_token: the model gives logits at several positions; the result is the loss of one
            position, without the reduction.

    Raises:
        InputError: no loss, an unknown one, one for several outputs, or one that does not fit the
            activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {ACTIVATIONS}")
    arguments = (compiled, override, activation, outputs, loss_weights, detached, per_token)
    keras_loss = _parse(override, outputs) if override else _compiled(compiled, outputs)
    scale = _scale(loss_weights)
    return _build(keras_loss, activation, outputs, scale, detached, per_token, arguments)


def of_output(
    compiled: Any, loss_weights: Any, names: Sequence[str], output: int
) -> tuple[Any, Any]:
    """Gives the compiled loss and loss weight of one output of a model.

    Args:
        compiled: `compile_config["loss"]`; one loss serves every output.
        loss_weights: `compile_config["loss_weights"]`.
        names: the names of the model's outputs.
        output: which of them.

    Raises:
        InputError: a list has another length than the outputs.
    """
    if len(names) == 1:
        return compiled, loss_weights

    def own(given: Any, what: str) -> Any:
        if isinstance(given, Mapping) and given.get("class_name") == "__tuple__":
            given = given["config"]["value"]
        if isinstance(given, Mapping) and "class_name" not in given:
            return given.get(names[output])
        if isinstance(given, (list, tuple)):
            if len(given) != len(names):
                raise InputError(
                    f"The model was compiled with {len(given)} {what} for {len(names)} outputs "
                    f"({', '.join(names)})."
                )
            return given[output]
        return given

    return own(compiled, "losses"), own(loss_weights, "loss weights")


def _build(
    keras_loss: Any,
    activation: str,
    outputs: int,
    scale: float,
    detached: bool,
    per_token: bool,
    arguments: tuple[Any, ...],
) -> Loss:
    """Chooses task, label form and formula for a Keras loss; see `resolve`."""
    name, config = _name(keras_loss), _config(keras_loss)
    lower = name.lower().replace("_", "")
    exact = _is_builtin(keras_loss)
    ignored = config.get("ignore_class")
    if ignored is not None and not per_token:
        raise InputError(
            f"The loss {name} has ignore_class={config['ignore_class']}, which gives examples of "
            "that class no gradient and is not "
            "supported; leave those examples out and pass `loss` without ignore_class."
        )
    if "axis" in config and config["axis"] != -1:
        raise InputError(
            f"The loss {name} has axis={config['axis']}, expected axis=-1, one loss per example; "
            "pass another `loss`."
        )
    from_logits = bool(config.get("from_logits", False))
    is_probability_loss = "from_logits" in config or (exact and lower in _PROBABILITY_ONLY)
    if activation == "linear" and is_probability_loss and not from_logits:
        advice = (
            f"pass `loss='{name}(from_logits=True)'` if it was trained on logits"
            if "from_logits" in config
            else "add the softmax or sigmoid to the model, or pass `loss`"
        )
        raise InputError(
            f"The loss {name} takes probabilities (from_logits=False), but nothing turns the "
            f"logits of the last dense layer into probabilities; {advice}."
        )
    # The label form is in no config: Keras's losses of class indices are known, custom ones go by
    # their name.
    sparse = "sparse" in lower or (exact and lower == "categoricalgeneralizedcrossentropy")
    softmax_like = sparse or "categorical" in lower or (from_logits and "binary" not in lower)
    if outputs == 1 and (activation == "softmax" or (softmax_like and "hinge" not in lower)):
        what = "A softmax" if activation == "softmax" else f"The loss {name}"
        raise InputError(
            f"{what} over one output is constant and has no gradient: the last dense layer has 1 "
            "unit, expected at least 2; use a sigmoid with binary_crossentropy for two classes."
        )
    if activation == "softmax" or (softmax_like and outputs > 1):
        task = "class"
    elif activation == "sigmoid" or "binary" in lower:
        task = "binary" if outputs == 1 else "multilabel"
    else:
        task = "regression"

    if sparse:
        rule = _INDEX
    elif exact and lower == "categoricalhinge":
        rule = _SIGNED_ONE_HOT
    elif exact and lower in ("hinge", "squaredhinge"):
        rule = _SIGN
    elif "binary" in lower or task in ("binary", "multilabel"):
        rule = _UNIT
    else:
        rule = _DISTRIBUTION if task == "class" else _FINITE

    smoothing = float(config.get("label_smoothing") or 0.0)
    kind = _CLOSED_FORMS.get(type(keras_loss), "automatic")
    if activation not in _HEADS.get(kind, ()):
        kind = "automatic"
    # Keras reads the probabilities as logits then; without from_logits the activation is folded in
    # all the same.
    detached = detached and activation != "linear"
    if detached and from_logits:
        kind = "automatic"
    # "none" is summed by the gradient.
    means = keras_loss.reduction not in ("sum", "none", None) or isinstance(keras_loss, _Wrapped)
    loss = Loss(
        task=task,
        outputs=outputs,
        activation=activation,
        description=_describe(
            name, config, kind, smoothing, activation, scale, detached and from_logits
        )
        + (_describe_positions(ignored, means) if per_token else ""),
        label_width=1 if sparse else outputs,
        label_is_integer=sparse,
        ignored_label=ignored,
        means_positions=means,
        _rule=rule,
        _kind=kind,
        _smoothing=smoothing,
        _scale=scale,
        _detached=detached,
        _keras_loss=keras_loss,
        _arguments=arguments,
    )
    if kind == "automatic":
        _check_per_example(loss, name)
        if per_token:
            _check_per_position(loss, name)
    return loss


# Losses of the family that take probabilities and have no from_logits.
_PROBABILITY_ONLY = ("kldivergence", "categoricalgeneralizedcrossentropy")

_CLOSED_FORMS: Mapping[type, str] = {
    keras.losses.SparseCategoricalCrossentropy: "softmax",
    keras.losses.CategoricalCrossentropy: "softmax",
    keras.losses.BinaryCrossentropy: "sigmoid",
    keras.losses.MeanSquaredError: "mean squared error",
}
# The activations that each closed form covers.
_HEADS: Mapping[str, tuple[str, ...]] = {
    "softmax": ("linear", "softmax"),
    "sigmoid": ("linear", "sigmoid"),
    "mean squared error": ("linear",),
}


def _describe(
    name: str,
    config: Mapping[str, Any],
    kind: str,
    smoothing: float,
    activation: str,
    scale: float,
    detached: bool,
) -> str:
    """Gives the canonical text; closed forms without from_logits, which the activation has
    settled.
    """
    if kind == "automatic":
        values = {key: value for key, value in config.items() if key not in _NOT_MATHEMATICAL}
        inner = ", ".join(
            f"{key}={json.dumps(values[key], sort_keys=True, default=str)}"
            for key in sorted(values)
        )
        text = f"{name}({inner})"
    else:
        inner = f"label_smoothing={smoothing!r}" if smoothing else ""
        text = f"{name}({inner})"
    after = "" if activation == "linear" else f" after {activation}"
    return (
        text
        + after
        + (" as logits" if detached else "")
        + (f" times {scale!r}" if scale != 1 else "")
    )


def _describe_positions(ignored: int | None, means: bool) -> str:
    return (
        (f" ignoring {ignored}" if ignored is not None else "")
        + (", mean" if means else ", sum")
        + " over positions"
    )


def _trial(loss: Loss, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes some logits `[n, C]` and usable labels `[n, label_width]`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, loss.outputs)).astype(np.float32)
    hot = np.eye(loss.outputs, dtype=np.float32)[np.arange(n) % loss.outputs]
    labels = (np.arange(n) % loss.outputs)[:, None] if loss.label_is_integer else hot
    if loss._rule in (_UNIT, _SIGN) and loss.outputs == 1:
        labels = (np.arange(n) > 0).astype(np.float32)[:, None]
    elif loss._rule == _FINITE:
        labels = rng.normal(size=(n, loss.outputs)).astype(np.float32)
    return logits, labels


def _check_per_position(loss: Loss, name: str) -> None:
    """Raises InputError unless the loss of a sequence is made of values of its positions that do
    not depend on the others.
    """
    logits, labels = _trial(loss, 4)
    whole = loss.values(tf.constant(logits), tf.constant(labels)).numpy().reshape(2, 2)
    raw = labels.reshape(2, 2) if loss.label_is_integer else labels.reshape(2, 2, -1)
    output = tf.constant(logits.reshape(2, 2, -1))
    if loss.activation != "linear":
        output = getattr(keras.activations, loss.activation)(output)
        output = tf.identity(output) if loss._detached else output
    try:
        found = np.asarray(loss._keras_loss.call(tf.constant(raw, tf.float32), output))
    except Exception as error:
        raise InputError(
            f"The loss {name} cannot be computed from positions: {first_line(error)}; pass another "
            "`loss`."
        ) from error
    if found.shape != whole.shape or not np.allclose(
        found, whole, rtol=1e-4, atol=1e-6, equal_nan=True
    ):
        raise InputError(
            f"The loss {name} does not give each position of a sequence a value of its own, so "
            "that no position has a gradient of its own; pass another `loss`."
        )


def _check_per_example(loss: Loss, name: str) -> None:
    """Raises InputError unless the loss gives each example of a batch a value that does not depend
    on the others.
    """
    n = 3
    logits, labels = _trial(loss, n)
    problem = "its value is not one number per example"
    try:
        raw = labels[:, 0] if loss.label_is_integer else labels
        values = tf.convert_to_tensor(
            loss._keras_loss.call(tf.constant(raw, tf.float32), tf.constant(logits))
        )
        shape = values.shape
        if shape.rank is None or shape.rank < 1 or shape[0] != n:
            raise InputError(
                f"The loss {name} gives a result of shape {shape} for {n} examples; {problem}; "
                "pass another `loss`."
            )
        whole = loss.values(tf.constant(logits), tf.constant(labels)).numpy()
        single = [
            loss.values(tf.constant(logits[i : i + 1]), tf.constant(labels[i : i + 1])).numpy()[0]
            for i in range(n)
        ]
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The loss {name} cannot be computed from {loss.outputs} outputs and labels of "
            f"{loss.label_width} numbers: {first_line(error)}; pass another `loss`."
        ) from error
    if not np.allclose(whole, single, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise InputError(
            f"The loss {name} of an example depends on the rest of its batch, so it has no "
            "gradient of its own; pass another `loss`."
        )


def _scale(loss_weights: Any) -> float:
    """Gives the one loss weight, 1 if there is none."""
    if isinstance(loss_weights, Mapping):
        loss_weights = list(loss_weights.values())
    if isinstance(loss_weights, (list, tuple)):
        if len(loss_weights) > 1:
            raise InputError(
                f"The model was compiled with {len(loss_weights)} loss weights, expected one: "
                "models with one output are supported."
            )
        loss_weights = loss_weights[0] if loss_weights else None
    if loss_weights is None:
        return 1.0
    if (
        isinstance(loss_weights, bool)
        or not isinstance(loss_weights, (int, float))
        or not np.isfinite(loss_weights)
    ):
        raise InputError(
            f"The model was compiled with loss_weights={loss_weights!r}, expected one number."
        )
    return float(loss_weights)


def _compiled(compiled: Any, outputs: int) -> Any:
    """Makes the Keras loss of a `compile_config["loss"]`."""
    if isinstance(compiled, Mapping) and "class_name" not in compiled:
        compiled = list(compiled.values())
    if isinstance(compiled, (list, tuple)):
        given = [loss for loss in compiled if loss is not None]
        if len(given) > 1:
            raise InputError(
                f"The model was compiled with {len(given)} losses, expected one: models with one "
                "output are supported."
            )
        return _compiled(given[0] if given else None, outputs)
    if compiled is None:
        raise InputError(
            "The checkpoints hold no compiled loss; pass `loss`, such as "
            "`loss='SparseCategoricalCrossentropy(from_logits=True)'`."
        )
    if isinstance(compiled, str):
        return _from_name(compiled, {}, outputs)
    if compiled.get("class_name") == "function" and isinstance(compiled.get("config"), str):
        return _from_name(compiled["config"], {}, outputs)
    try:
        keras_loss = _as_loss(keras.losses.deserialize(dict(compiled)), {})
    except Exception as error:
        name = compiled.get("registered_name") or compiled.get("class_name")
        raise InputError(
            f"The compiled loss {name} cannot be loaded ({first_line(error)}); name the module "
            "that registers it with `imports`, or pass `loss`."
        ) from error
    # Keras's Huber leaves its delta out of its config, so that a loaded one silently has the
    # default.
    lost = sorted(
        set(getattr(keras_loss, "_fn_kwargs", ())) - set(compiled.get("config") or ()) - {"axis"}
    )
    if lost and _is_builtin(keras_loss):
        name, values = (
            type(keras_loss).__name__,
            ", ".join(f"{key}={keras_loss._fn_kwargs[key]!r}" for key in lost),
        )
        raise InputError(
            f"The archive of a model does not keep {', '.join(lost)} of the loss {name}; pass it, "
            f"as in `loss='{name}({values})'`."
        )
    return keras_loss


def _is_builtin(keras_loss: Any) -> bool:
    return type(keras_loss).__module__.startswith("keras.")


def _parse(text: str, outputs: int) -> Any:
    """Makes the Keras loss that `loss` names: `name` or `name(key=literal, …)`."""
    match = re.fullmatch(r"\s*([\w.]+(?:>[\w.]+)?)\s*(\(.*\))?\s*", text, re.DOTALL)
    wrong = (
        f"`loss={text!r}` is not a loss; expected a name, or a name with keyword literals, such as "
        "'CategoricalCrossentropy(from_logits=True)'."
    )
    if not match:
        raise InputError(wrong)
    keywords: dict[str, Any] = {}
    if match[2]:
        try:
            call = ast.parse("f" + match[2], mode="eval").body
            if (
                not isinstance(call, ast.Call)
                or call.args
                or any(word.arg is None for word in call.keywords)
            ):
                raise InputError(wrong)
            keywords = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        except (SyntaxError, ValueError) as error:
            raise InputError(wrong) from error
    return _from_name(match[1], keywords, outputs)


def _from_name(name: str, keywords: Mapping[str, Any], outputs: int) -> Any:
    """Makes the Keras loss of a name and keyword arguments."""
    if name.lower() in ("crossentropy", "ce"):
        # Keras chooses by the labels' shape at the first batch, which is not in the archive; only
        # one output leaves no choice.
        if outputs != 1:
            raise InputError(
                f"The loss {name!r} stands for several; pass "
                "`loss=sparse_categorical_crossentropy`, categorical_crossentropy or "
                "binary_crossentropy."
            )
        name = "binary_crossentropy"
    found = keras.saving.get_registered_object(name) or keras.saving.get_registered_object(
        f"Custom>{name}"
    )
    if found is None:
        try:
            found = keras.losses.get(name) if not _is_class(name) else getattr(keras.losses, name)
        except ValueError:
            found = None
    if found is None:
        raise InputError(
            f"The loss {name!r} is neither a Keras loss nor a registered one; name the module that "
            "registers it with `imports`, or pass `loss`."
        )
    try:
        return _as_loss(found, keywords)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The loss {name} does not take {dict(keywords)}: {first_line(error)}; correct `loss`."
        ) from error


def _is_class(name: str) -> bool:
    return inspect.isclass(getattr(keras.losses, name, None))


def _as_loss(found: Any, keywords: Mapping[str, Any]) -> Any:
    """Makes an instance of a loss class, or wraps a loss function as Keras does when it
    compiles.
    """
    if isinstance(found, keras.losses.Loss):
        return found
    if inspect.isclass(found):
        return found(**keywords)
    if not callable(found):
        raise InputError(f"The loss {found!r} is neither a class nor a function.")
    # A built-in function has a class of the same name and the same arguments.
    wanted = found.__name__.replace("_", "")
    if getattr(found, "__module__", "").startswith("keras."):
        for name, cls in vars(keras.losses).items():
            if inspect.isclass(cls) and name.lower() == wanted:
                return cls(**keywords)
    inspect.signature(found).bind(None, None, **keywords)
    return _Wrapped(found, dict(keywords))


class _Wrapped(keras.losses.Loss):
    """A loss function with its keyword arguments."""

    def __init__(self, function: Callable[..., Any], keywords: dict[str, Any]):
        super().__init__(name=function.__name__, reduction="none")
        self.function = function
        self.keywords = keywords

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Calls the function; labels `[n]` (class indices) or `[n, C]`, outputs `[n, C]`, both
        float32.
        """
        return self.function(y_true, y_pred, **self.keywords)

    def get_config(self) -> dict[str, Any]:
        """Gives the arguments, the function's defaults included."""
        defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(self.function).parameters.values()
            if parameter.default is not inspect.Parameter.empty
        }
        return {**defaults, **self.keywords}


def _name(keras_loss: Any) -> str:
    """Gives the name that a user knows the loss by."""
    if isinstance(keras_loss, _Wrapped):
        return keras.saving.get_registered_name(keras_loss.function)
    if _is_builtin(keras_loss):
        return type(keras_loss).__name__
    return keras.saving.get_registered_name(type(keras_loss))


def _config(keras_loss: Any) -> dict[str, Any]:
    """Gives a loss's arguments; none if a custom class does not tell."""
    known = dict(getattr(keras_loss, "_fn_kwargs", None) or {})
    try:
        return {**known, **keras_loss.get_config()}
    except Exception:
        return known


def _nans(logits: tf.Tensor) -> tf.Tensor:
    return tf.fill([tf.shape(logits)[0]], tf.constant(np.nan, tf.float32))


def _number(value: Any) -> str:
    """Writes a label's number without a needless fraction."""
    value = float(value)
    return (
        str(int(value))
        if np.isfinite(value) and value == int(value) and abs(value) < 1e15
        else f"{value:.6g}"
    )
