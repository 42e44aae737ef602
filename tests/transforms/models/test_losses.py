"""Losses against Keras's own value and TensorFlow's tape, and against exact values where float32
cancels.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transforms.core.errors import InputError
from transforms.models.losses.compiled_losses import resolve
from transforms.models.losses.labels import active
from transforms.models.losses.loss import Loss

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


L = keras.losses
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


# What fit does


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


# Custom losses


@keras.saving.register_keras_serializable("test_losses")
class Scaled(keras.losses.Loss):
    def __init__(self, factor: float = 1.0, name: str = "scaled", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.factor = factor

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.factor * keras.ops.sum(keras.ops.square(y_true - y_pred), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("test_losses")
def cubed(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.abs(y_true - y_pred) ** 3


@keras.saving.register_keras_serializable("test_losses")
def of_the_whole_batch(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


@keras.saving.register_keras_serializable("test_losses")
def centred(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(
        keras.ops.square(y_true - y_pred + keras.ops.mean(y_pred, axis=0)), axis=-1
    )


def test_custom_losses_by_name_and_by_config() -> None:
    logits, labels = np.array([[1.0, 3.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    by_name = resolve(None, "test_losses>Scaled(factor=2.0)", "linear", 2)
    np.testing.assert_allclose(by_name.loss_grads(logits, labels), [[4.0, 8.0]])
    by_config = resolve(keras.losses.serialize(Scaled(2.0)), None, "linear", 2)
    np.testing.assert_allclose(by_config.loss_grads(logits, labels), [[4.0, 8.0]])
    assert by_name.description == by_config.description
    assert (
        by_name.description
        != resolve(None, "test_losses>Scaled(factor=3.0)", "linear", 2).description
    )
    # A function that gives [n, C] is averaged over C, as Keras's reduction does.
    function = resolve(keras.saving.serialize_keras_object(cubed), None, "linear", 2)
    np.testing.assert_allclose(function.loss_grads(logits, labels), [[1.5, 6.0]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_the_whole_batch", "not one number per example"),
        ("centred", "depends on the rest of its batch"),
    ],
)
def test_a_loss_that_is_not_per_example_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(None, f"test_losses>{name}", "linear", 2)


# resolve


@pytest.mark.parametrize(
    ("compiled", "same"),
    [
        ("mse", "mse"),
        (["mse"], "mse"),
        ({"head": "mse"}, "mse"),
        ({"head": [keras.losses.serialize(L.MeanSquaredError(name="x"))]}, "mse"),
        (
            keras.saving.serialize_keras_object(keras.losses.mean_squared_error),
            "MeanSquaredError()",
        ),
    ],
)
def test_forms_of_a_compiled_loss(compiled: Any, same: str) -> None:
    assert resolve(compiled, None, "linear", 3) == resolve(None, same, "linear", 3)


def test_the_override_wins() -> None:
    assert resolve("mse", "mae", "linear", 3).description == "MeanAbsoluteError()"


def test_descriptions_tell_losses_apart_but_not_spellings() -> None:
    def describe(text: str, activation: str, weight: Any = None) -> str:
        return resolve(None, text, activation, 3, weight).description

    base = describe("sparse_categorical_crossentropy", "softmax")
    assert base == describe("SparseCategoricalCrossentropy(from_logits=True)", "softmax", 1.0)
    others = {
        describe("SparseCategoricalCrossentropy(from_logits=True)", "linear"),
        describe("categorical_crossentropy", "softmax"),
        describe("CategoricalCrossentropy(label_smoothing=0.1)", "softmax"),
        describe("sparse_categorical_crossentropy", "softmax", 0.5),
        describe("Huber(delta=2.0)", "linear"),
        describe("Huber(delta=3.0)", "linear"),
    }
    assert len(others) == 6 and base not in others


def test_a_loss_pickles() -> None:
    loss = resolve("categorical_crossentropy", None, "softmax", 3, {"out": 2.0}, True)
    again = pickle.loads(pickle.dumps(loss))
    assert again == loss
    z, y = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[0.0, 1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(again.loss_grads(z, y), loss.loss_grads(z, y))


@pytest.mark.parametrize(
    ("compiled", "override", "activation", "outputs", "weights", "message"),
    [
        (None, None, "linear", 3, None, "no compiled loss; pass `loss`"),
        (["mse", "mae"], None, "linear", 3, None, "2 losses, expected one"),
        ({"a": "mse", "b": "mae"}, None, "linear", 3, None, "2 losses, expected one"),
        ("mse", None, "linear", 3, [1.0, 2.0], "2 loss weights, expected one"),
        (
            "sparse_categorical_crossentropy",
            None,
            "linear",
            3,
            None,
            r"pass `loss='SparseCategoricalCrossentropy\(from_logits=True\)'`",
        ),
        (
            "binary_crossentropy",
            None,
            "linear",
            1,
            None,
            r"pass `loss='BinaryCrossentropy\(from_logits=True\)'`",
        ),
        ("kl_divergence", None, "linear", 3, None, "takes probabilities"),
        (
            None,
            "SparseCategoricalCrossentropy(ignore_class=2)",
            "softmax",
            3,
            None,
            "ignore_class=2",
        ),
        (None, "CategoricalCrossentropy(axis=1)", "softmax", 3, None, "axis=1, expected axis=-1"),
        (
            None,
            "CategoricalCrossentropy(from_logits=True)",
            "linear",
            1,
            None,
            "one output is constant",
        ),
        ("mse", None, "softmax", 1, None, "one output is constant"),
        ("dice", None, "sigmoid", 3, None, "axis=None"),
        ("circle", None, "linear", 3, None, "Circle"),
        ("ctc", None, "linear", 3, None, "CTC"),
        (
            keras.losses.serialize(L.Huber(delta=0.5)),
            None,
            "linear",
            3,
            None,
            r"does not keep delta.*`loss='Huber\(delta=1.0\)'`",
        ),
        ("crossentropy", None, "softmax", 3, None, "stands for several"),
        ("unheard_of", None, "linear", 3, None, "name the module that registers it with `imports`"),
        (
            {"class_name": "Gone", "module": None, "registered_name": "p>Gone", "config": {}},
            None,
            "linear",
            3,
            None,
            "p>Gone.*`imports`",
        ),
        (None, "mse(", "linear", 3, None, "not a loss; expected a name"),
        (None, "Huber(delta=open('x'))", "linear", 3, None, "not a loss; expected a name"),
        (None, "Huber(2.0)", "linear", 3, None, "not a loss; expected a name"),
        (None, "Huber(gamma=2.0)", "linear", 3, None, "does not take {'gamma': 2.0}"),
    ],
)
def test_refusals(
    compiled: Any, override: str | None, activation: str, outputs: int, weights: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve(compiled, override, activation, outputs, weights)
    assert "\n" not in str(caught.value)


# Labels, predictions, probabilities


@pytest.mark.parametrize(
    ("loss", "labels", "reasons"),
    [
        (
            resolve("sparse_categorical_crossentropy", None, "softmax", 10),
            [[3], [12], [-1], [2.5], [np.nan]],
            [
                None,
                "label 12 is outside 0..9",
                "label -1 is outside 0..9",
                "label 2.5 is not a whole number",
                "label nan is not finite",
            ],
        ),
        (
            resolve("categorical_crossentropy", None, "softmax", 2),
            [[0.5, 0.5], [1.0005, 0], [0.4, 0.4], [1.5, -0.5], [np.inf, 0]],
            [None, None, "sums to 0.8", "holds -0.5", "inf is not finite"],
        ),
        (
            resolve("binary_crossentropy", None, "sigmoid", 2),
            [[1, 1], [0.5, 0], [2, 0], [-1, 1]],
            [None, None, "holds 2, expected numbers within 0..1", "holds -1"],
        ),
        (resolve("mse", None, "linear", 1), [[-1e30], [np.nan]], [None, "nan is not finite"]),
        (
            resolve("hinge", None, "linear", 1),
            [[-1], [0], [0.5]],
            [None, None, "holds 0.5, expected -1, 0 or 1"],
        ),
        (
            resolve("categorical_hinge", None, "linear", 2),
            [[0, 1], [-1, 1], [1, 1]],
            [None, None, "2 ones, expected exactly one"],
        ),
    ],
    ids=["index", "distribution", "unit", "finite", "sign", "signed one-hot"],
)
def test_invalid_labels(loss: Loss, labels: list[list[float]], reasons: list[str | None]) -> None:
    found = loss.invalid_labels(np.array(labels))
    for reason, expected in zip(found, reasons, strict=True):
        assert (reason is None) == (expected is None), (reason, expected)
        assert expected is None or expected in str(reason)
    assert loss.invalid_labels(np.array(labels)[:1]) == [None]


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


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.int8,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6),
        elements=st.integers(0, 1),
    )
)
def test_active_gives_back_the_multi_hot(multi_hot: np.ndarray) -> None:
    indices = active(multi_hot)
    assert indices.shape == (len(multi_hot), max(1, multi_hot.sum(1).max(initial=0)))
    for row, listed in zip(multi_hot, indices, strict=True):
        np.testing.assert_array_equal(listed[listed >= 0], np.flatnonzero(row))
