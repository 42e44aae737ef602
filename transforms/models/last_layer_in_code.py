"""The last dense layer of a model whose end is code: found by what goes into its dense layers and
what follows them.

A subclassed model, or one that ends in a layer of the user's own, has no graph to walk. It is run
on random numbers instead. Nothing but a softmax or sigmoid may follow the layer: other values put
in the place of its output must come out of the model so. And it must be the only way from its
kernel to the output: the kernel's gradient must be the outer product that the factors give. Both
are checked for each checkpoint, when it is loaded.
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
from transforms.models.inputs import Inputs, choose_output, inputs_of, output_names
from transforms.models.last_layer_in_graph import Head, activation_of, check_dense

_ROWS = 8
_INSIDE = "inside tf.cond, a loop or a tf.function of the model's own"
# What rounding may change, relative to the largest value.
_TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


class _Tap:
    """Stands in for the `call` of a dense layer: notes what goes in, and hands on what it is told
    to.

    Each thread notes and tells for itself, and only inside `open`.
    """

    def __init__(self, dense: Any) -> None:
        self.dense = dense
        self._call = dense.call
        self._local = threading.local()
        dense.call = self

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        output = self._call(inputs, *args, **kwargs)
        noted = getattr(self._local, "noted", None)
        if noted is None:
            return output
        # What a condition, a loop or a function inside the model computes cannot be handed out of
        # it.
        noted.append(inputs if _graph() is self._local.graph else None)
        return output if self._local.instead is None else tf.cast(self._local.instead, output.dtype)

    @contextlib.contextmanager
    def open(self, instead: Any = None) -> Iterator[list[Any]]:
        """Gives the list that inputs are noted in (None for those of a call inside an inner graph).

        The layer's output is `instead` where that is given.
        """
        self._local.noted, self._local.instead, self._local.graph = [], instead, _graph()
        try:
            yield self._local.noted
        finally:
            self._local.noted = self._local.instead = None


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class _Trunk:
    """Runs the model for what goes into its last dense layer."""

    def __init__(self, model: Any, inputs: Inputs, tap: _Tap) -> None:
        self._model = model
        self._inputs = inputs
        self._tap = tap

    def __call__(self, tensors: Sequence[Any], training: bool = False) -> Any:
        with self._tap.open() as noted:
            self._model(self._inputs.pack(tensors), training=training)
        if len(noted) != 1 or noted[0] is None:
            raise InputError(
                f"its dense layer {self._tap.dense.name} is called {len(noted)} times, or {_INSIDE}"
            )
        return noted[0]


def find_head(
    model: Any, layer: str | None, output_name: str | None, include_bias: bool, path: str
) -> Head:
    """Finds the last dense layer of a model by running it.

    Args:
        model: a loaded checkpoint.
        layer: what `layer` names.
        output_name: what `output_name` names.
        include_bias: whether the layer must have a bias.
        path: the checkpoint, for messages.

    Raises:
        InputError: there is no such layer, or the model cannot be run.
    """
    inputs = inputs_of(model, path)
    sample = _sample(inputs, path)
    dense_layers = [
        one for one in model._flatten_layers(include_self=False) if type(one) is keras.layers.Dense
    ]
    if not dense_layers:
        raise InputError(
            f"{path}: {type(model).__name__} holds no Dense layer; expected one at the end."
        )
    if layer is not None and layer not in [dense.name for dense in dense_layers]:
        raise InputError(
            f"`layer={layer}` is not a dense layer of {path}; its dense layers are "
            f"{', '.join(dense.name for dense in dense_layers)}."
        )
    taps = [_Tap(dense) for dense in dense_layers]
    before = len(model.weights)
    with contextlib.ExitStack() as stack:
        noted = [stack.enter_context(tap.open()) for tap in taps]
        found = _call(model, inputs, sample, path)
    if len(model.weights) != before:
        new = ", ".join(variable.path for variable in model.weights[before:][:3])
        raise InputError(
            f"{path}: {new or 'variables'} come into being only when the model is called; make "
            "them in build() or __init__."
        )
    names = output_names(None, found)
    chosen = choose_output(names, output_name, path)

    def run(tap: _Tap, instead: Any) -> np.ndarray:
        with tap.open(instead):
            return _numbers(keras.tree.flatten(_call(model, inputs, sample, path))[chosen])

    output = keras.tree.flatten(found)[chosen]
    reasons, fitting = [], []
    for tap, calls in zip(taps, noted, strict=True):
        if layer is not None and tap.dense.name != layer:
            continue
        reason, activation = _examine(tap, calls, output, run)
        if reason:
            reasons.append(f"{tap.dense.name} {reason}")
        else:
            fitting.append((tap, activation))
    if not fitting:
        raise InputError(
            f"{path}: no Dense layer of {type(model).__name__} is the last one, followed by at "
            f"most a softmax or sigmoid: {'; '.join(reasons)}."
        )
    # There is but one: what is put in the place of any other is lost at the last.
    tap, activation = fitting[0]
    dense = tap.dense
    check_dense(dense, include_bias, path)
    head = Head(
        layer=dense.name,
        trunk=_Trunk(model, inputs, tap),
        inputs=inputs.specs,
        output_names=tuple(names),
        output=chosen,
        kernel=dense.kernel,
        bias=dense.bias if dense.use_bias else None,
        outputs=int(dense.units),
        units=int(dense.kernel.shape[0]),
        activation=activation,
        detached=False,
    )
    return _verified(head, dense.compute_dtype, model, inputs, sample, output, path)


def _sample(inputs: Inputs, path: str) -> list[tf.Tensor]:
    """Makes random inputs between 0 and 2: such that an embedding finds its rows, even where whole
    numbers come as floats.
    """
    rng = np.random.default_rng(0)
    sample = []
    for spec in inputs.specs:
        if any(size is None for size in spec.shape):
            raise InputError(
                f"{path}: the model's input {spec.name} has the free shape {spec.shape}; declare a "
                "fixed one in input_spec."
            )
        values = rng.uniform(0, 2, (_ROWS, *(size or 0 for size in spec.shape)))
        sample.append(
            tf.cast(tf.constant(values >= 1 if spec.dtype == "bool" else values), spec.dtype)
        )
    return sample


def _call(model: Any, inputs: Inputs, sample: Sequence[Any], path: str) -> Any:
    try:
        return model(inputs.pack(sample), training=False)
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {spec.shape} {spec.dtype}" for spec in inputs.specs)
        raise InputError(
            f"{path}: {type(model).__name__} cannot be called with random numbers of {shapes} "
            f"({first_line(error)}); declare what it takes "
            "as self.input_spec = keras.InputSpec(shape=(None, ...), dtype=...)."
        ) from error


def _examine(
    tap: _Tap, calls: Sequence[Any], output: Any, run: Callable[[_Tap, Any], np.ndarray]
) -> tuple[str, str]:
    """Says why a dense layer is not the last one, or else what follows it."""
    dense = tap.dense
    if len(calls) != 1:
        return (f"is called {len(calls)} times" if calls else "is not called"), ""
    if calls[0] is None:
        return f"is called {_INSIDE}", ""
    if len(calls[0].shape) != 2:
        return (
            f"works on each position of a tensor of shape {tuple(calls[0].shape)}, expected one "
            "vector per example",
            "",
        )
    shape = (_ROWS, int(dense.units))
    if tuple(output.shape) not in [shape, *([(_ROWS,)] if dense.units == 1 else [])]:
        return f"has {dense.units} units, the output has the shape {tuple(output.shape)}", ""
    scales = np.geomspace(0.1, 300, _ROWS)[:, None]
    instead = tf.cast(
        tf.constant(np.random.default_rng(1).normal(size=shape) * scales, tf.float32),
        dense.compute_dtype,
    )
    came_out = run(tap, instead)
    own = activation_of(dense)
    # What follows an activation of the layer's own has to hand it on.
    for activation in ("linear", "softmax", "sigmoid") if own == "linear" else ("linear",):
        expected = _numbers(getattr(keras.activations, activation)(instead)).reshape(came_out.shape)
        if _alike(came_out, expected, dense.compute_dtype):
            return "", activation if own in ("linear", None) else str(own)
    return "is followed by something else", ""


def _verified(
    head: Head,
    dtype: str,
    model: Any,
    inputs: Inputs,
    sample: Sequence[Any],
    output: Any,
    path: str,
) -> Head:
    """Compares logits, output and gradient, computed as a run computes them, with the model's own.

    Returns:
        The head, with what Keras's losses see of its logits.

    Raises:
        InputError: they differ, or the model cannot become part of a TensorFlow function.
    """
    kernel = head.kernel.value
    weights = tf.constant(np.random.default_rng(2).normal(size=(_ROWS, head.outputs)), tf.float32)
    detached = True

    def weighted(values: Any) -> Any:
        return tf.reduce_sum(
            weights * tf.reshape(tf.cast(values, tf.float32), [_ROWS, head.outputs])
        )

    # Keras trains without AutoGraph too.
    @tf.function(autograph=False)
    def compute() -> tuple[Any, ...]:
        nonlocal detached
        activations = tf.cast(head.trunk(sample, training=False), tf.float32)
        logits = head.logits(activations)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            followed = getattr(keras.activations, head.activation)(logits)
            value = weighted(followed)
        factors = tf.matmul(activations, tape.gradient(value, logits), transpose_a=True)
        with tf.GradientTape() as tape:
            # The kernel of a layer that was frozen is not watched by itself.
            tape.watch(kernel)
            own = keras.tree.flatten(model(inputs.pack(sample), training=False))[head.output]
            value = weighted(own)
        # Keras's cross-entropies look for the logits there.
        seen = hasattr(own, "_keras_logits") or own.op.type in ("Softmax", "Sigmoid")
        detached = not seen or keras.backend.standardize_dtype(own.dtype) != "float32"
        return (
            followed,
            factors,
            tape.gradient(value, kernel, unconnected_gradients=tf.UnconnectedGradients.ZERO),
        )

    try:
        followed, factors, gradient = map(_numbers, compute())
    except Exception as error:
        raise InputError(
            f"{path}: {type(model).__name__} cannot be made part of a TensorFlow function: "
            f"{first_line(error)}."
        ) from error
    if not _alike(followed.reshape(output.shape), _numbers(output), dtype):
        raise InputError(
            f"{path}: what the dense layer {head.layer} computes is not the output of "
            f"{type(model).__name__}."
        )
    alone = head.trunk([tensor[: _ROWS // 2] for tensor in sample], training=False)
    if not _alike(
        _numbers(alone), _numbers(head.trunk(sample, training=False))[: _ROWS // 2], dtype
    ):
        raise InputError(
            f"{path}: what {type(model).__name__} computes for an example depends on the rest of "
            "its batch."
        )
    if not _alike(factors, gradient, dtype):
        raise InputError(
            f"{path}: the gradient of the dense layer {head.layer} is not the outer product of its "
            "input and its logits' gradient: its "
            f"kernel is used elsewhere in {type(model).__name__} too, or the gradient is stopped."
        )
    return dataclasses.replace(head, detached=detached and head.activation != "linear")


def _numbers(tensor: Any) -> np.ndarray:
    return np.asarray(tf.cast(tensor, tf.float64))


def _alike(found: np.ndarray, expected: np.ndarray, dtype: str) -> bool:
    """Says whether two arrays differ by rounding at most."""
    if found.shape != expected.shape:
        return False
    return bool(
        np.abs(found - expected).max(initial=0)
        <= _TOLERANCES[dtype] * max(np.abs(expected).max(initial=0), 1e-3)
    )
