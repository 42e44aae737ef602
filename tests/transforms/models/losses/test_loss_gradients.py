"""Loss gradients against TensorFlow's tape, and exact values where float32 cancels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transforms.models.losses.compiled_losses import resolve

L = keras.losses

N, C = 7, 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def one_hot(index: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[index]


def distribution(rng: np.random.Generator, n: int, classes: int) -> np.ndarray:
    q = rng.gamma(0.5, size=(n, classes)) + 1e-3
    return (q / q.sum(1, keepdims=True)).astype(np.float32)


def tape_grads(
    keras_loss: Any, activation: str, logits: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Each example's gradient alone, through `Loss.__call__`, as `fit` computes it with a batch of
    one.
    """
    grads = []
    for z, y in zip(logits, labels, strict=True):
        z = tf.constant(z[None])
        with tf.GradientTape() as tape:
            tape.watch(z)
            output = getattr(keras.activations, activation)(z)
            value = keras_loss(tf.constant(y[None]), output)
        grads.append(tape.gradient(value, z)[0].numpy())
    return np.stack(grads)


# `loss`, the Keras loss, activation, C, label kind
CASES = [
    (
        "SparseCategoricalCrossentropy(from_logits=True)",
        L.SparseCategoricalCrossentropy(from_logits=True),
        "linear",
        C,
        "index",
    ),
    ("sparse_categorical_crossentropy", L.SparseCategoricalCrossentropy(), "softmax", C, "index"),
    (
        "CategoricalCrossentropy(from_logits=True)",
        L.CategoricalCrossentropy(from_logits=True),
        "linear",
        C,
        "hot",
    ),
    ("categorical_crossentropy", L.CategoricalCrossentropy(), "softmax", C, "soft"),
    (
        "CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)",
        L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        "linear",
        C,
        "hot",
    ),
    (
        "CategoricalCrossentropy(label_smoothing=0.3)",
        L.CategoricalCrossentropy(label_smoothing=0.3),
        "softmax",
        C,
        "soft",
    ),
    ("bce", L.BinaryCrossentropy(), "sigmoid", 1, "bits"),
    (
        "BinaryCrossentropy(from_logits=True)",
        L.BinaryCrossentropy(from_logits=True),
        "linear",
        C,
        "bits",
    ),
    (
        "BinaryCrossentropy(label_smoothing=0.2)",
        L.BinaryCrossentropy(label_smoothing=0.2),
        "sigmoid",
        C,
        "unit",
    ),
    ("binary_crossentropy", L.BinaryCrossentropy(), "softmax", C, "hot"),
    ("categorical_crossentropy", L.CategoricalCrossentropy(), "sigmoid", C, "hot"),
    ("mse", L.MeanSquaredError(), "linear", 1, "real"),
    ("mse", L.MeanSquaredError(), "linear", C, "real"),
    ("mse", L.MeanSquaredError(), "sigmoid", C, "unit"),
    ("mse", L.MeanSquaredError(), "softmax", C, "hot"),
    ("Huber(delta=0.5)", L.Huber(delta=0.5), "linear", C, "real"),
    ("mae", L.MeanAbsoluteError(), "linear", C, "real"),
    ("log_cosh", L.LogCosh(), "linear", 1, "real"),
    ("hinge", L.Hinge(), "linear", C, "bits"),
    ("SquaredHinge", L.SquaredHinge(), "linear", 1, "bits"),
    ("categorical_hinge", L.CategoricalHinge(), "linear", C, "hot"),
    ("kld", L.KLDivergence(), "softmax", C, "soft"),
    (
        "BinaryFocalCrossentropy(gamma=3.0)",
        L.BinaryFocalCrossentropy(gamma=3.0),
        "sigmoid",
        C,
        "bits",
    ),
    (
        "BinaryFocalCrossentropy(from_logits=True, apply_class_balancing=True)",
        L.BinaryFocalCrossentropy(from_logits=True, apply_class_balancing=True),
        "linear",
        1,
        "bits",
    ),
    (
        "CategoricalFocalCrossentropy(from_logits=True)",
        L.CategoricalFocalCrossentropy(from_logits=True),
        "linear",
        C,
        "hot",
    ),
    ("CategoricalFocalCrossentropy", L.CategoricalFocalCrossentropy(), "softmax", C, "hot"),
    (
        "CategoricalGeneralizedCrossEntropy",
        L.CategoricalGeneralizedCrossEntropy(),
        "softmax",
        C,
        "index",
    ),
]


def make_labels(kind: str, rng: np.random.Generator, n: int, classes: int) -> np.ndarray:
    if kind == "index":
        return rng.integers(0, classes, (n, 1))
    if kind == "hot":
        return one_hot(rng.integers(0, classes, n), classes)
    if kind == "soft":
        return distribution(rng, n, classes)
    if kind == "bits":
        return rng.integers(0, 2, (n, classes)).astype(np.float32)
    if kind == "unit":
        return rng.uniform(size=(n, classes)).astype(np.float32)
    return rng.normal(size=(n, classes)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "keras_loss", "activation", "outputs", "kind"),
    CASES,
    ids=[f"{c[0]}-{c[2]}-{c[3]}" for c in CASES],
)
def test_loss_grads_are_those_of_keras(
    text: str, keras_loss: Any, activation: str, outputs: int, kind: str, rng: np.random.Generator
) -> None:
    loss = resolve(None, text, activation, outputs)
    logits = rng.normal(scale=2, size=(N, outputs)).astype(np.float32)
    labels = make_labels(kind, rng, N, outputs)
    assert loss.label_width == labels.shape[1]
    assert loss.label_is_integer == (kind == "index")
    assert loss.invalid_labels(labels) == [None] * N

    grads = loss.loss_grads(tf.constant(logits), tf.constant(labels))
    graph = tf.function(loss.loss_grads)(tf.constant(logits), tf.constant(labels))

    expected = tape_grads(
        keras_loss, activation, logits, labels[:, 0] if kind == "index" else labels
    )
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(grads, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(graph, expected, rtol=2e-5, atol=2e-6)
    assert grads.dtype == tf.float32


def exact_softmax_grad(z: np.ndarray, y: int) -> np.ndarray:
    """p − e_y in extended precision, with 1 − p_y summed from the others."""
    z = z.astype(np.longdouble)
    p = np.exp(z - z.max())
    p /= p.sum()
    p[y] = -np.delete(p, y).sum()
    return p


@pytest.mark.parametrize("gap", [5.0, 25.0, 60.0])
@pytest.mark.parametrize("kind", ["index", "hot"])
def test_a_confident_example_keeps_direction_and_norm(gap: float, kind: str) -> None:
    logits = np.array([[gap, 0.0, -1.0, 0.5, 0.25]], np.float32)
    name = "SparseCategoricalCrossentropy" if kind == "index" else "CategoricalCrossentropy"
    loss = resolve(None, f"{name}(from_logits=True)", "linear", C)
    labels = np.array([[0]]) if kind == "index" else one_hot(np.array([0]), C)

    grads = (
        loss.loss_grads(tf.constant(logits), tf.constant(labels)).numpy()[0].astype(np.longdouble)
    )

    expected = exact_softmax_grad(logits[0], 0)
    np.testing.assert_allclose(grads.astype(float), expected.astype(float), rtol=3e-7)
    assert grads[0] < 0
    assert np.sqrt((grads**2).sum()) / np.sqrt((expected**2).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("gap", [25.0, 60.0])
def test_a_confident_sigmoid_keeps_its_gradient(gap: float) -> None:
    loss = resolve(None, "BinaryCrossentropy(from_logits=True)", "linear", 2)
    grads = loss.loss_grads(tf.constant([[gap, -gap]]), tf.constant([[1.0, 0.0]])).numpy()[0]
    tail = np.exp(-np.longdouble(gap)) / (1 + np.exp(-np.longdouble(gap))) / 2
    np.testing.assert_allclose(grads, np.array([-tail, tail], float), rtol=3e-7)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(-40, 40, width=32)),
    hnp.arrays(np.int64, (3, 1), elements=st.integers(0, 3)),
    st.floats(0.1, 4.0),
)
def test_softmax_grads_sum_to_zero_and_scale(
    logits: np.ndarray, labels: np.ndarray, weight: float
) -> None:
    loss = resolve("sparse_categorical_crossentropy", None, "softmax", 4)
    weighted = resolve("sparse_categorical_crossentropy", None, "softmax", 4, [weight])
    grads = loss.loss_grads(tf.constant(logits), tf.constant(labels)).numpy().astype(np.float64)
    size = np.abs(grads).max(1)
    assert (np.abs(grads.sum(1)) <= 4e-7 * size).all()
    assert (np.take_along_axis(grads, labels, 1) <= 0).all()
    np.testing.assert_allclose(weighted.loss_grads(logits, labels), weight * grads, rtol=1e-6)
    for z, y, grad in zip(logits, labels[:, 0], grads, strict=True):
        np.testing.assert_allclose(grad, exact_softmax_grad(z, y).astype(float), rtol=1e-6)


def test_an_off_by_a_little_soft_label_keeps_the_gradient_of_the_written_loss() -> None:
    """−Σ q log p has the gradient pΣq − q, whatever Σq."""
    q = np.array([[0.6, 0.3, 0.1004]], np.float32)
    loss = resolve("categorical_crossentropy", None, "softmax", 3)
    assert loss.invalid_labels(q) == [None]
    z = tf.Variable([[1.0, -2.0, 0.5]], dtype=tf.float64)
    with tf.GradientTape() as tape:
        value = -tf.reduce_sum(tf.cast(q, tf.float64) * tf.nn.log_softmax(z))
    np.testing.assert_allclose(
        loss.loss_grads(tf.cast(z, tf.float32), q), tape.gradient(value, z), rtol=1e-6
    )
