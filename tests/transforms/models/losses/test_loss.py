"""A loss as fit computes it, and what records hold of labels and predictions."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.models.losses.compiled_losses import resolve
from transforms.models.losses.labels import active

L = keras.losses

N, C = 7, 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def one_hot(index: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[index]


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize(
    ("activation", "outputs", "cls"),
    [
        ("softmax", 4, L.SparseCategoricalCrossentropy),
        ("softmax", 4, L.CategoricalCrossentropy),
        ("sigmoid", 1, L.BinaryCrossentropy),
        ("sigmoid", 3, L.BinaryCrossentropy),
        ("sigmoid", 3, L.BinaryFocalCrossentropy),
    ],
)
@pytest.mark.parametrize("place", ["dense", "layer", "operation"])
def test_factored_gradient_is_that_of_the_compiled_model(
    from_logits: bool, activation: str, outputs: int, cls: Any, place: str, rng: np.random.Generator
) -> None:
    """Keras takes the logits from behind the activation, with from_logits=True too (it only
    warns).
    """
    x = keras.Input((6,))
    dense = keras.layers.Dense(
        outputs, activation=activation if place == "dense" else None, bias_initializer="normal"
    )
    y = dense(x)
    if place == "layer":
        y = keras.layers.Activation(activation)(y)
    elif place == "operation":
        y = getattr(keras.ops, activation)(y)
    model = keras.Model(x, y)
    model.compile(loss=cls(from_logits=from_logits), optimizer="sgd")
    h = rng.normal(size=(1, 6)).astype(np.float32)
    loss = resolve(keras.losses.serialize(cls(from_logits=from_logits)), None, activation, outputs)
    label = np.array([[1]]) if loss.label_is_integer else one_hot(np.array([0]), outputs)
    logits = h @ dense.kernel.numpy() + dense.bias.numpy()

    @tf.function
    def full() -> Any:
        with tf.GradientTape() as tape:
            value = model.compute_loss(x=h, y=label, y_pred=model(h, training=True))
        return tape.gradient(value, [dense.kernel.value, dense.bias.value])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel_grad, bias_grad = full()
        delta = loss.loss_grads(tf.constant(logits), tf.constant(label)).numpy()
    np.testing.assert_allclose(bias_grad, delta[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kernel_grad, h.T @ delta, rtol=1e-4, atol=1e-6)


def test_a_detached_softmax_with_from_logits_is_taken_at_its_word(rng: np.random.Generator) -> None:
    z, y = rng.normal(size=(N, C)).astype(np.float32), rng.integers(0, C, (N, 1))
    text = "SparseCategoricalCrossentropy(from_logits=True)"
    loss = resolve(None, text, "softmax", C, None, True)
    v = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(v)
        value = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=y[:, 0], logits=tf.identity(tf.nn.softmax(v))
        )
    np.testing.assert_allclose(loss.loss_grads(z, y), tape.gradient(value, v), rtol=1e-5, atol=1e-7)
    folded = resolve(None, text, "softmax", C)
    assert np.abs(folded.loss_grads(z, y) - loss.loss_grads(z, y)).max() > 0.1
    assert folded.description != loss.description
    # Without from_logits the probabilities are what the loss wants.
    plain = resolve(None, "sparse_categorical_crossentropy", "softmax", C, None, True)
    np.testing.assert_array_equal(plain.loss_grads(z, y), folded.loss_grads(z, y))


def test_hinge_of_an_example_does_not_depend_on_its_batch() -> None:
    loss = resolve("hinge", None, "linear", 2)
    logits = np.array([[0.3, -0.2], [0.1, 0.4]], np.float32)
    labels = np.array([[0, 1], [-1, 1]], np.float32)
    together = loss.loss_grads(logits, labels).numpy()
    np.testing.assert_array_equal(together[0], loss.loss_grads(logits[:1], labels[:1]).numpy()[0])
    np.testing.assert_array_equal(together[0], [0.5, -0.5])


def test_class_fields(rng: np.random.Generator) -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]], np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for text, labels in [
        ("SparseCategoricalCrossentropy(from_logits=True)", np.array([[2], [0]])),
        (
            "CategoricalCrossentropy(from_logits=True)",
            np.array([[0.2, 0.3, 0.5], [1, 0, 0]], np.float32),
        ),
    ]:
        loss = resolve(None, text, "linear", 3)
        assert loss.task == "class"
        prediction, probability = loss.predict(logits)
        np.testing.assert_array_equal(prediction, [[1], [0]])
        assert prediction.dtype == tf.int64
        np.testing.assert_allclose(probability, [p[0, 1], p[1, 0]], rtol=1e-6)
        np.testing.assert_allclose(
            loss.label_probability(logits, labels), [p[0, 2], p[1, 0]], rtol=1e-6
        )
        np.testing.assert_array_equal(loss.record_labels(labels), [[2], [0]])
        given_back = loss.predicted_labels(logits).numpy()
        assert given_back.shape == labels.shape and loss.invalid_labels(given_back) == [None, None]
        np.testing.assert_array_equal(loss.record_labels(given_back), prediction)


def test_binary_fields() -> None:
    loss = resolve("binary_crossentropy", None, "sigmoid", 1)
    assert (loss.task, loss.label_width) == ("binary", 1)
    logits = np.array([[2.0], [-1.0], [0.0]], np.float32)
    p = 1 / (1 + np.exp(-logits[:, 0]))
    prediction, probability = loss.predict(logits)
    np.testing.assert_array_equal(prediction, [[1], [0], [1]])
    np.testing.assert_allclose(probability, [p[0], 1 - p[1], 0.5], rtol=1e-6)
    labels = np.array([[0.0], [0.4], [0.7]], np.float32)
    np.testing.assert_array_equal(loss.record_labels(labels), [[0], [0], [1]])
    np.testing.assert_allclose(
        loss.label_probability(logits, labels), [1 - p[0], 1 - p[1], 0.5], rtol=1e-6
    )


def test_multilabel_fields() -> None:
    loss = resolve(None, "BinaryCrossentropy(from_logits=True)", "linear", 3)
    assert (loss.task, loss.label_width) == ("multilabel", 3)
    logits = np.array([[2.0, -1.0, 0.5], [-2.0, -2.0, -2.0]], np.float32)
    p = 1 / (1 + np.exp(-logits))
    prediction, probability = loss.predict(logits)
    np.testing.assert_array_equal(prediction, [[1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(active(prediction.numpy()), [[0, 2], [-1, -1]])
    np.testing.assert_allclose(
        probability, [(p[0, 0] * (1 - p[0, 1]) * p[0, 2]) ** (1 / 3), 1 - p[1, 0]], rtol=1e-6
    )
    labels = np.array([[0, 1, 1], [0, 0, 0]], np.float32)
    np.testing.assert_array_equal(loss.record_labels(labels), [[1, 2], [-1, -1]])
    expected = [((1 - p[0, 0]) * p[0, 1] * p[0, 2]) ** (1 / 3), 1 - p[1, 0]]
    np.testing.assert_allclose(loss.label_probability(logits, labels), expected, rtol=1e-6)


def test_regression_fields() -> None:
    loss = resolve("mse", None, "linear", 2)
    logits = np.array([[2.0, -1.0]], np.float32)
    prediction, probability = loss.predict(logits)
    np.testing.assert_array_equal(prediction, logits)
    assert np.isnan(probability).all() and np.isnan(loss.label_probability(logits, logits)).all()
    np.testing.assert_array_equal(loss.record_labels(np.array([[1.5, 2.5]])), [[1.5, 2.5]])
    loss.check_label_mode("given")
    with pytest.raises(InputError, match="`labels=predicted`"):
        loss.check_label_mode("predicted")
    with pytest.raises(InputError, match="`labels=predicted`"):
        loss.predicted_labels(logits)


def test_a_hinge_on_scores_has_classes_but_no_probability() -> None:
    loss = resolve("categorical_hinge", None, "linear", 3)
    prediction, probability = loss.predict(np.array([[0.0, 5.0, 1.0]], np.float32))
    assert loss.task == "class" and prediction.numpy().item() == 1 and np.isnan(probability).all()


def test_labels_of_another_shape_are_a_mistake_of_the_caller() -> None:
    loss = resolve("categorical_crossentropy", None, "softmax", 3)
    assert loss.invalid_labels(np.eye(3)) == [None] * 3
    with pytest.raises(ValueError, match=r"labels have shape \(3, 1\), expected \[n, 3\]"):
        loss.invalid_labels(np.zeros((3, 1)))
