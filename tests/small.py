"""A small model with layers that inference mode changes, and tools to save, load and run models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.models.checkpoints import Checkpoints, ModelSpec, load

L = keras.layers
N, D_IN, C = 16, 6, 3


def make_model() -> keras.Model:
    """A model with dropout, batch statistics that move, and a bias."""
    return keras.Sequential(
        [
            keras.Input((D_IN,), name="pixels"),
            L.Dense(8, activation="relu", name="hidden"),
            L.BatchNormalization(momentum=0.5, name="norm"),
            L.Dropout(0.5, name="drop"),
            L.Dense(C, bias_initializer="normal", name="head"),
        ],
        name="small",
    )


def compile_model(model: keras.Model, optimizer: Any = None) -> keras.Model:
    model.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9) if optimizer is None else optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


BUILDS: list[keras.Model] = []


def build_small() -> keras.Model:
    return compile_model(make_model())


def build_once() -> keras.Model:
    BUILDS.append(make_model()) if not BUILDS else None
    return BUILDS[0]


def save(model: keras.Model, path: Path) -> str:
    model.save(path)
    return str(path)


def logits_of(checkpoints: Checkpoints, x: Any, t: int = 0) -> np.ndarray:
    return checkpoints.logits_and_activations(t, x)[0].numpy()


def sequential(*layers: Any) -> keras.Model:
    return keras.Sequential([keras.Input((D_IN,)), *layers])


def functional(last: Callable[[Any], Any]) -> keras.Model:
    inputs = keras.Input((D_IN,))
    return keras.Model(inputs, last(L.Dense(4, activation="relu", name="hidden")(inputs)))


def assert_reference(
    found: Checkpoints,
    model: keras.Model,
    dense: Any,
    inputs: Any,
    labels: np.ndarray,
    value: Callable[[Any, int], Any],
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> None:
    """Asserts that factored gradients of the first checkpoint are the tape's, example by example.

    The tape is on the whole model in inference mode. `inputs` are the model's arguments; `value`
    computes the loss of example i from the model's output for it alone.
    """
    names = [spec.name for spec in found.inputs]
    flat = inputs if not isinstance(inputs, dict) else [inputs[name] for name in names]
    logits, activations, _ = tf.function(
        lambda *tensors: found.logits_and_activations(0, list(tensors))
    )(*(flat if isinstance(flat, (list, tuple)) else [flat]))
    delta = found.loss.loss_grads(logits, labels).numpy()
    largest = 0.0
    for i in range(len(labels)):
        with tf.GradientTape() as tape:
            loss = value(
                model(
                    keras.tree.map_structure(lambda part, i=i: part[i : i + 1], inputs),
                    training=False,
                ),
                i,
            )
        kernel, bias = tape.gradient(loss, [dense.kernel.value, dense.bias.value])
        scale = max(1.0, float(np.abs(kernel).max()))
        np.testing.assert_allclose(
            np.outer(activations[i], delta[i]), kernel, rtol=rtol, atol=atol * scale
        )
        np.testing.assert_allclose(delta[i], bias, rtol=rtol, atol=atol * scale)
        largest = max(largest, float(np.abs(kernel).max()))
    assert largest > 1e-3


def assert_refused(path: str, message: str) -> None:
    """Asserts that a checkpoint is refused in one line that names it and matches `message`."""
    with pytest.raises(InputError, match=message) as caught:
        load(ModelSpec((path,), loss="mse"))
    assert path in str(caught.value) and "\n" not in str(caught.value)
