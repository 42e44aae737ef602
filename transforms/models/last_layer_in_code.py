"""The last dense layer of a model that ends in code, found by running the model.

A subclassed model, or one that ends in a layer of the user's own, has no graph to walk. It is run
on random numbers instead, and two properties are checked for each checkpoint when it is loaded:

- Nothing but a softmax or sigmoid follows the layer: values that replace its output come out of the
  model, unchanged or through that activation.
- The layer is the only way from its kernel to the output: the kernel's gradient is the outer
  product of the layer's input and the gradient at its logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError, first_line
from transforms.models.inputs import ModelInputs, choose_output, inputs_of, output_names
from transforms.models.last_layer import (
    LastDenseLayer,
    LayerChoice,
    activation_of,
    check_dense,
    is_dense,
)

# Random examples that a model is run on: enough to tell coincidences from rules, for little time.
_ROWS = 8
# Standard deviations of the values that replace the layer's output, from row to row: small ones
# leave a softmax unsaturated, large ones exceed limits that a model may clip at.
_SMALLEST_OUTPUT, _LARGEST_OUTPUT = 0.1, 300
# Differences that rounding may make, relative to the largest value.
_TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_INSIDE = "inside tf.cond, a loop or a tf.function of the model's own"


class _Tap:
    """Stands in for the `call` of a dense layer: records its inputs, and may replace its output.

    Each thread has records and a replacement of its own, and only inside `open`.
    """

    def __init__(self, dense: Any) -> None:
        self.dense = dense
        self._call = dense.call
        self._local = threading.local()
        dense.call = self

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        output = self._call(inputs, *args, **kwargs)
        recorded = getattr(self._local, "recorded", None)
        if recorded is None:
            return output
        # A tensor computed by a condition, a loop or a function inside the model cannot be handed
        # out of it.
        recorded.append(inputs if _graph() is self._local.graph else None)
        replacement = self._local.replacement
        return output if replacement is None else tf.cast(replacement, output.dtype)

    @contextlib.contextmanager
    def open(self, replacement: Any = None) -> Iterator[list[Any]]:
        """Records calls of the layer.

        Args:
            replacement: the layer's output in these calls; its own if None.

        Yields:
            The list that inputs are recorded in; None for a call inside an inner graph.
        """
        self._local.recorded, self._local.graph = [], _graph()
        self._local.replacement = replacement
        try:
            yield self._local.recorded
        finally:
            self._local.recorded = self._local.replacement = None


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class _Trunk:
    """Runs the model for the input of its last dense layer."""

    def __init__(self, model: Any, inputs: ModelInputs, tap: _Tap) -> None:
        self._model = model
        self._inputs = inputs
        self._tap = tap

    def __call__(self, tensors: Sequence[Any], training: bool = False) -> Any:
        with self._tap.open() as recorded:
            self._model(self._inputs.pack(tensors), training=training)
        if len(recorded) != 1 or recorded[0] is None:
            raise InputError(
                f"its dense layer {self._tap.dense.name} is called {len(recorded)} times, or "
                f"{_INSIDE}"
            )
        return recorded[0]


class _TrialRun:
    """A model with random inputs to run it on.

    The inputs lie between 0 and 2, so that an embedding finds its rows even where whole numbers
    come as floats.
    """

    def __init__(self, model: Any, path: str) -> None:
        self.model = model
        self.name = type(model).__name__
        self.path = path
        self.inputs = inputs_of(model, path)
        rng = np.random.default_rng(0)
        self.sample = []
        for spec in self.inputs.specs:
            if any(size is None for size in spec.shape):
                raise InputError(
                    f"{path}: the model's input {spec.name} has the free shape {spec.shape}; "
                    "declare a fixed one in input_spec."
                )
            values = rng.uniform(0, 2, (_ROWS, *(size or 0 for size in spec.shape)))
            self.sample.append(
                tf.cast(tf.constant(values >= 1 if spec.dtype == "bool" else values), spec.dtype)
            )

    def outputs(self) -> Any:
        """Runs the model; returns its outputs as it structures them."""
        try:
            return self.model(self.inputs.pack(self.sample), training=False)
        except Exception as error:
            shapes = ", ".join(
                f"{spec.name} {spec.shape} {spec.dtype}" for spec in self.inputs.specs
            )
            raise InputError(
                f"{self.path}: {self.name} cannot be called with random numbers of {shapes} "
                f"({first_line(error)}); declare its inputs as self.input_spec = "
                "keras.InputSpec(shape=(None, ...), dtype=...)."
            ) from error

    def record(self, taps: Sequence[_Tap]) -> tuple[Any, list[list[Any]]]:
        """Runs the model; returns its outputs, and the inputs of each dense layer's calls.

        Raises:
            InputError: the model makes variables on the way.
        """
        before = len(self.model.weights)
        with contextlib.ExitStack() as stack:
            recorded = [stack.enter_context(tap.open()) for tap in taps]
            outputs = self.outputs()
        if len(self.model.weights) != before:
            new = ", ".join(variable.path for variable in self.model.weights[before:][:3])
            raise InputError(
                f"{self.path}: {new or 'variables'} come into being only when the model is called; "
                "make them in build() or __init__."
            )
        return outputs, recorded


def find_last_dense_layer(model: Any, choice: LayerChoice, path: str) -> LastDenseLayer:
    """Finds the last dense layer of a model by running it.

    Args:
        model: a loaded checkpoint.
        choice: which layer to use; it must not work on positions.
        path: the checkpoint, for messages.

    Raises:
        InputError: there is no such layer, or the model cannot be run.
    """
    trial = _TrialRun(model, path)
    taps = [_Tap(dense) for dense in _dense_layers(trial, choice.layer)]
    structure, recorded = trial.record(taps)
    names = output_names(None, structure)
    output_index = choose_output(names, choice.output_name, path)
    output = keras.tree.flatten(structure)[output_index]

    def replace_output(tap: _Tap, replacement: Any) -> np.ndarray:
        with tap.open(replacement):
            return _float64(keras.tree.flatten(trial.outputs())[output_index])

    reasons, fitting = [], []
    for tap, calls in zip(taps, recorded, strict=True):
        if choice.layer is not None and tap.dense.name != choice.layer:
            continue
        reason, activation = _examine(tap, calls, output, replace_output)
        if reason:
            reasons.append(f"{tap.dense.name} {reason}")
        else:
            fitting.append((tap, activation))
    if not fitting:
        raise InputError(
            f"{path}: no Dense layer of {trial.name} is the last one, followed by at most a "
            f"softmax or sigmoid: {'; '.join(reasons)}."
        )
    # There is only one: a value that replaces the output of any other layer does not come out.
    tap, activation = fitting[0]
    dense = tap.dense
    check_dense(dense, choice.include_bias, path)
    last = LastDenseLayer(
        layer=dense.name,
        trunk=_Trunk(model, trial.inputs, tap),
        inputs=trial.inputs.specs,
        output_names=tuple(names),
        output_index=output_index,
        kernel=dense.kernel,
        bias=dense.bias if dense.use_bias else None,
        outputs=int(dense.units),
        units=int(dense.kernel.shape[0]),
        activation=activation,
        detached=False,
    )
    return _verify(last, dense.compute_dtype, trial, output)


def _dense_layers(trial: _TrialRun, layer: str | None) -> list[Any]:
    """Returns the dense layers of a model; raises InputError if `layer` is none of them."""
    layers = [one for one in trial.model._flatten_layers(include_self=False) if is_dense(one)]
    if not layers:
        raise InputError(
            f"{trial.path}: {trial.name} holds no Dense layer; expected one at the end."
        )
    names = [dense.name for dense in layers]
    if layer is not None and layer not in names:
        raise InputError(
            f"`layer={layer}` is not a dense layer of {trial.path}; its dense layers are "
            f"{', '.join(names)}."
        )
    return layers


def _examine(
    tap: _Tap, calls: Sequence[Any], output: Any, replace_output: Callable[[_Tap, Any], np.ndarray]
) -> tuple[str, str]:
    """Finds out whether a dense layer is the last one.

    Args:
        tap: the layer.
        calls: the inputs of its calls.
        output: the model's output.
        replace_output: runs the model with another output of the layer; returns the model's.

    Returns:
        Why it is not, or an empty text; and the activation that follows it.
    """
    dense = tap.dense
    if len(calls) != 1:
        return (f"is called {len(calls)} times" if calls else "is not called"), ""
    if calls[0] is None:
        return f"is called {_INSIDE}", ""
    if len(calls[0].shape) != 2:
        shape = tuple(calls[0].shape)
        return (
            f"works on each position of a tensor of shape {shape}, expected one vector per example"
        ), ""
    shape = (_ROWS, int(dense.units))
    squeezed = [(_ROWS,)] if dense.units == 1 else []
    if tuple(output.shape) not in [shape, *squeezed]:
        return f"has {dense.units} units, the output has the shape {tuple(output.shape)}", ""
    scales = np.geomspace(_SMALLEST_OUTPUT, _LARGEST_OUTPUT, _ROWS)[:, None]
    replacement = tf.cast(
        tf.constant(np.random.default_rng(1).normal(size=shape) * scales, tf.float32),
        dense.compute_dtype,
    )
    result = replace_output(tap, replacement)
    own = activation_of(dense)
    # An activation of the layer's own must be handed on as it is.
    for activation in ("linear", "softmax", "sigmoid") if own == "linear" else ("linear",):
        expected = _float64(getattr(keras.activations, activation)(replacement))
        if _equal(result, expected.reshape(result.shape), dense.compute_dtype):
            return "", activation if own in ("linear", None) else str(own)
    return "is followed by something else", ""


@dataclasses.dataclass(frozen=True)
class _Gradients:
    """The output and the kernel's gradient as extraction factors it, and as the model has it."""

    output: np.ndarray
    """The activation of the logits `[n, C]`."""
    factored: np.ndarray
    """Σ h δᵀ `[D, C]`."""
    whole: np.ndarray
    """The kernel's gradient through the whole model `[D, C]`."""
    detached: bool
    """Whether Keras's losses do not find the logits on the model's output."""


def _verify(last: LastDenseLayer, dtype: str, trial: _TrialRun, output: Any) -> LastDenseLayer:
    """Compares logits, output and gradient with the model's own.

    Returns:
        The layer, with `detached` as Keras's losses see it.

    Raises:
        InputError: they differ, or the model cannot become part of a TensorFlow function.
    """
    path, name = trial.path, trial.name
    try:
        gradients = _gradients(last, trial)
    except Exception as error:
        raise InputError(
            f"{path}: {name} cannot be made part of a TensorFlow function: {first_line(error)}."
        ) from error
    if not _equal(gradients.output.reshape(output.shape), _float64(output), dtype):
        raise InputError(
            f"{path}: what the dense layer {last.layer} computes is not the output of {name}."
        )
    half = _ROWS // 2
    alone = last.trunk([tensor[:half] for tensor in trial.sample], training=False)
    together = last.trunk(trial.sample, training=False)
    if not _equal(_float64(alone), _float64(together)[:half], dtype):
        raise InputError(
            f"{path}: what {name} computes for an example depends on the rest of its batch."
        )
    if not _equal(gradients.factored, gradients.whole, dtype):
        raise InputError(
            f"{path}: the gradient of the dense layer {last.layer} is not the outer product of its "
            f"input and its logits' gradient: its kernel is used elsewhere in {name} too, or the "
            "gradient is stopped."
        )
    detached = gradients.detached and last.activation != "linear"
    return dataclasses.replace(last, detached=detached)


def _gradients(last: LastDenseLayer, trial: _TrialRun) -> _Gradients:
    """Computes the kernel's gradient both ways, for a random weighted sum of the outputs."""
    kernel, shape = last.kernel.value, [_ROWS, last.outputs]
    weights = tf.constant(np.random.default_rng(2).normal(size=shape), tf.float32)
    detached = True

    def weighted_sum(values: Any) -> Any:
        return tf.reduce_sum(weights * tf.reshape(tf.cast(values, tf.float32), shape))

    # Keras trains without AutoGraph too.
    @tf.function(autograph=False)
    def compute() -> tuple[Any, ...]:
        nonlocal detached
        activations = tf.cast(last.trunk(trial.sample, training=False), tf.float32)
        logits = last.logits(activations)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            output = getattr(keras.activations, last.activation)(logits)
            value = weighted_sum(output)
        factored = tf.matmul(activations, tape.gradient(value, logits), transpose_a=True)
        with tf.GradientTape() as tape:
            # The kernel of a layer that was frozen is not watched by itself.
            tape.watch(kernel)
            structure = trial.model(trial.inputs.pack(trial.sample), training=False)
            own = keras.tree.flatten(structure)[last.output_index]
            value = weighted_sum(own)
        # Keras's cross-entropies look for the logits there.
        visible = hasattr(own, "_keras_logits") or own.op.type in ("Softmax", "Sigmoid")
        detached = not visible or keras.backend.standardize_dtype(own.dtype) != "float32"
        whole = tape.gradient(value, kernel, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return output, factored, whole

    output, factored, whole = map(_float64, compute())
    return _Gradients(output, factored, whole, detached)


def _float64(tensor: Any) -> np.ndarray:
    return np.asarray(tf.cast(tensor, tf.float64))


def _equal(values: np.ndarray, expected: np.ndarray, dtype: str) -> bool:
    """Returns whether two arrays differ at most by rounding in `dtype`."""
    if values.shape != expected.shape:
        return False
    return bool(
        np.abs(values - expected).max(initial=0)
        <= _TOLERANCES[dtype] * max(np.abs(expected).max(initial=0), 1e-3)
    )
