"""Checks and logits of a last dense layer, however it is found."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small import D_IN, C, L
from transforms.core.errors import InputError
from transforms.models.last_layer import (
    LastDenseLayer,
    activation_of,
    check_dense,
    describe,
    is_dense,
    is_keras,
)


def dense(**settings: Any) -> Any:
    layer = L.Dense(C, name="head", bias_initializer="normal", **settings)
    layer.build((None, D_IN))
    return layer


def last_layer(layer: Any) -> LastDenseLayer:
    return LastDenseLayer(
        layer=layer.name,
        trunk=lambda tensors, training: tensors[0],
        inputs=(),
        output_names=("head",),
        output_index=0,
        kernel=layer.kernel,
        bias=layer.bias if layer.use_bias else None,
        outputs=C,
        units=D_IN,
        activation="linear",
        detached=False,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "mixed_bfloat16"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_logits_are_float32(dtype: str, use_bias: bool, x: np.ndarray) -> None:
    layer = dense(dtype=dtype, use_bias=use_bias)
    kernel = np.asarray(tf.cast(layer.kernel.value, tf.float32))
    bias = np.asarray(tf.cast(layer.bias.value, tf.float32)) if use_bias else 0
    logits = last_layer(layer).logits(tf.constant(x))
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, x @ kernel + bias, rtol=1e-5, atol=1e-6)


def low_rank() -> Any:
    layer = dense()
    layer.enable_lora(2)
    return layer


def test_a_plain_dense_layer_passes() -> None:
    """Protects layers that must not be refused: no call may raise."""
    for activation in (None, "linear", "softmax", "sigmoid"):
        check_dense(dense(activation=activation), True, "m.keras")
    check_dense(dense(use_bias=False), False, "m.keras")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (dense(activation="tanh"), "the last dense layer head .Dense. has the activation tanh"),
        (low_rank(), "layer head .Dense. has LoRA, expected a plain kernel"),
        (dense(use_bias=False), r"has no bias \(use_bias=False\); pass `include_bias=false`"),
    ],
    ids=["activation", "LoRA", "no bias"],
)
def test_refused(layer: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^m.keras: .*{message}"):
        check_dense(layer, True, "m.keras")


class Subclass(L.Dense):
    pass


@pytest.mark.parametrize(
    ("operation", "activation"),
    [
        (L.Dense(2), "linear"),
        (L.Dense(2, activation="softmax"), "softmax"),
        (L.Dense(2, activation="relu"), None),
        (L.Activation("sigmoid"), "sigmoid"),
        (L.Activation("relu"), None),
        (L.Softmax(), "softmax"),
        (L.Dropout(0.5), None),
        (Subclass(2), None),
    ],
)
def test_activation_of(operation: Any, activation: str | None) -> None:
    assert activation_of(operation) == activation


def test_names_of_operations() -> None:
    assert is_dense(L.Dense(2)) and not is_dense(Subclass(2))
    assert is_keras(L.Dropout(0.5), ("Flatten", "Dropout"))
    assert not is_keras(Subclass(2), ("Subclass",))
    assert describe(keras.layers.Dense(2, name="kind")) == "layer kind (Dense)"
