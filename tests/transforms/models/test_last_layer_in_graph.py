"""Last dense layers in a graph, operations that may follow them, and models that are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small import (
    D_IN,
    C,
    L,
    assert_refused,
    compile_model,
    functional,
    logits_of,
    save,
    sequential,
)
from transforms.models.checkpoints import ModelSpec, load

LAST_LAYERS: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "linear": (lambda: sequential(L.Dense(C, name="head")), "linear"),
    "own softmax": (lambda: sequential(L.Dense(C, activation="softmax", name="head")), "softmax"),
    "own sigmoid": (lambda: sequential(L.Dense(C, activation="sigmoid", name="head")), "sigmoid"),
    "softmax layer": (lambda: sequential(L.Dense(C, name="head"), L.Softmax()), "softmax"),
    "activation layer": (
        lambda: sequential(L.Dense(C, name="head"), L.Activation("sigmoid")),
        "sigmoid",
    ),
    "softmax operation": (
        lambda: functional(lambda h: keras.ops.softmax(L.Dense(C, name="head")(h))),
        "softmax",
    ),
    "sigmoid operation": (
        lambda: functional(lambda h: keras.ops.sigmoid(L.Dense(C, name="head")(h))),
        "sigmoid",
    ),
    "seen through": (
        lambda: sequential(
            L.Dense(C, name="head"),
            L.Dropout(0.5),
            L.GaussianNoise(1.0),
            L.Reshape((1, C)),
            L.SpatialDropout1D(0.5),
            L.Flatten(),
            L.Identity(),
            L.ActivityRegularization(0.1),
            L.Activation("linear"),
            L.Softmax(),
            L.Reshape((C,)),
        ),
        "softmax",
    ),
    "nested": (
        lambda: sequential(
            keras.Sequential([L.Dense(5, activation="tanh"), L.BatchNormalization()]),
            keras.Sequential(
                [L.Dense(4), keras.Sequential([L.Dropout(0.2), L.Dense(C, name="head")])]
            ),
            L.Softmax(),
        ),
        "softmax",
    ),
    "dense first inside": (
        lambda: sequential(L.Dense(4), keras.Sequential([L.Dense(C, name="head"), L.Softmax()])),
        "softmax",
    ),
    "dense on the input": (lambda: sequential(L.Dense(C, name="head")), "linear"),
    "no bias": (lambda: sequential(L.Dense(C, name="head", use_bias=False)), "linear"),
}


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_last_layers(name: str, tmp_path: Path, x: np.ndarray) -> None:
    build, activation = LAST_LAYERS[name]
    model = build()
    for variable in model.weights:
        variable.assign(variable + 0.1)
    path = save(model, tmp_path / "m.keras")
    loss = {
        "linear": "mse",
        "softmax": "sparse_categorical_crossentropy",
        "sigmoid": "binary_crossentropy",
    }[activation]
    found = load(ModelSpec((path,), layer="head", loss=loss, include_bias=name != "no bias"))
    assert (found.layer, found.outputs, found.loss.activation) == ("head", C, activation)
    logits = logits_of(found, x)
    output = getattr(keras.activations, activation)(tf.constant(logits))
    np.testing.assert_allclose(output, model.predict(x, verbose=0), rtol=1e-4, atol=1e-6)


def test_one_output_may_be_squeezed(tmp_path: Path, x: np.ndarray) -> None:
    model = functional(lambda h: keras.ops.squeeze(L.Dense(1)(h), axis=-1))
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="mse"))
    np.testing.assert_allclose(
        logits_of(found, x)[:, 0], model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


@keras.saving.register_keras_serializable("test_checkpoints")
class MyDense(L.Dense):
    pass


def shared_dense() -> keras.Model:
    dense, inputs = L.Dense(D_IN, name="head"), keras.Input((D_IN,))
    return keras.Model(inputs, dense(L.ReLU()(dense(inputs))))


def shared_model() -> keras.Model:
    inner, inputs = sequential(L.Dense(D_IN, name="head")), keras.Input((D_IN,))
    return keras.Model(inputs, inner(L.ReLU()(inner(inputs))))


def two_outputs() -> keras.Model:
    inputs = keras.Input((D_IN,))
    return keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)])


def low_rank() -> keras.Model:
    model = sequential(L.Dense(C, name="head"))
    model.get_layer("head").enable_lora(2)
    return model


REFUSED: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "relu on the last dense": (
        lambda: sequential(L.Dense(C, activation="relu", name="head")),
        "head .Dense. has the activation relu",
    ),
    "relu after": (
        lambda: sequential(L.Dense(C, name="head"), L.ReLU(name="after")),
        "layer after .ReLU. stands at the end",
    ),
    "batch norm after": (
        lambda: sequential(L.Dense(C), L.BatchNormalization(name="bn")),
        r"layer bn \(BatchNormalization\) stands at the end",
    ),
    "scaled after": (
        lambda: functional(lambda h: L.Dense(C)(h) / 2.0),
        r"\(TrueDivide\) stands at the end",
    ),
    "two activations": (
        lambda: sequential(L.Dense(C, activation="softmax"), L.Softmax()),
        "softmax, and a softmax follows",
    ),
    "two activation layers": (
        lambda: sequential(L.Dense(C), L.Softmax(), L.Activation("sigmoid")),
        "is a second activation",
    ),
    "convolution": (
        lambda: sequential(L.Reshape((1, 1, D_IN)), L.Conv2D(C, 1, name="conv"), L.Flatten()),
        r"ends in layer conv \(Conv2D\), which is not a Dense layer",
    ),
    "einsum": (
        lambda: sequential(L.EinsumDense("ab,bc->ac", C, name="ein")),
        r"ein \(EinsumDense\), which is not a Dense layer",
    ),
    "subclass of dense": (lambda: sequential(MyDense(C, name="mine")), "is a subclass of Dense"),
    "no dense": (lambda: sequential(L.Flatten()), "no Dense layer stands between"),
    "per token": (
        lambda: sequential(L.Reshape((2, 3)), L.Dense(C, name="head")),
        "sum of outer products",
    ),
    "grouped softmax": (
        lambda: sequential(L.Dense(4), L.Reshape((2, 2)), L.Softmax(), L.Flatten()),
        "softmax is over groups",
    ),
    "reshaped": (lambda: sequential(L.Dense(4), L.Reshape((2, 2))), r"reshaped to \(None, 2, 2\)"),
    "shared": (shared_dense, "is called 2 times"),
    "shared model": (shared_model, "is called 2 times"),
    "two outputs": (two_outputs, r"has 2 outputs .*; choose one with `output_name`"),
    "no bias": (
        lambda: sequential(L.Dense(C, use_bias=False)),
        "has no bias.*`include_bias=false`",
    ),
    "lora": (low_rank, "LoRA"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_layers(name: str, tmp_path: Path) -> None:
    build, message = REFUSED[name]
    assert_refused(save(build(), tmp_path / "m.keras"), message)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_gives_float32(policy: str, tmp_path: Path, x: np.ndarray) -> None:
    model = keras.Sequential(
        [
            keras.Input((D_IN,)),
            L.Dense(8, activation="relu", dtype=policy, name="hidden"),
            L.Dense(C, dtype=policy, name="head"),
            L.Activation("linear", dtype="float32"),
        ]
    )
    found = load(
        ModelSpec(
            (save(model, tmp_path / "m.keras"),),
            loss="SparseCategoricalCrossentropy(from_logits=True)",
        )
    )
    logits, h, _ = found.logits_and_activations(0, x)
    assert logits.dtype == h.dtype == tf.float32
    hidden = tf.cast(model.get_layer("hidden")(x), tf.float32).numpy()
    np.testing.assert_array_equal(h, hidden)
    np.testing.assert_allclose(
        logits, hidden @ model.get_layer("head").kernel.numpy(), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(logits, model.predict(x, verbose=0), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("detach", "word"), [(False, ""), (True, " as logits")])
def test_from_logits_after_a_softmax_follows_keras(
    detach: bool, word: str, tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    """Keras finds the logits behind a softmax, unless another operation comes between."""
    model = sequential(
        L.Dense(C, activation="softmax", name="head"), *([L.Reshape((C,))] if detach else [])
    )
    compile_model(model)
    path = save(model, tmp_path / "m.keras")
    found = load(ModelSpec((path,)))
    assert found.loss.description.endswith(f"after softmax{word}")
    logits, _, _ = found.logits_and_activations(0, x[:1])
    delta = found.loss.loss_grads(logits, y[:1, None])[0]

    @tf.function
    def full() -> Any:
        with tf.GradientTape() as tape:
            value = model.compute_loss(x=x[:1], y=y[:1], y_pred=model(x[:1], training=True))
        return tape.gradient(value, model.get_layer("head").bias.value)

    with contextlib.nullcontext() if detach else pytest.warns(UserWarning, match="from_logits"):
        expected = full()
    np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-6)


def test_a_softmax_in_half_precision_hides_the_logits_too(tmp_path: Path) -> None:
    model = sequential(L.Dense(C, activation="softmax", dtype="mixed_float16", name="head"))
    path = save(compile_model(model), tmp_path / "m.keras")
    assert load(ModelSpec((path,))).loss.description.endswith("after softmax as logits")
    assert load(
        ModelSpec((path,), loss="sparse_categorical_crossentropy")
    ).loss.description.endswith("after softmax")
