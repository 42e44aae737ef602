"""Loaded checkpoints: their logits, activations and inputs, and what they must agree in.

Models that prepare their inputs themselves, and models in half precision, are among them: factored
gradients are still those of the whole model.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small import D_IN, C, L, N, assert_reference, logits_of, make_model, save
from transforms.core.errors import InputError
from transforms.models.checkpoints import ModelSpec, load
from transforms.models.inputs import ModelInput


def test_load_gives_logits_and_activations_of_every_checkpoint(
    trained: keras.Model, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    first = save(trained, tmp_path / "1.keras")
    expected = [trained.predict(x, verbose=0)]
    trained.fit(x, y, batch_size=4, verbose=0)
    second = save(trained, tmp_path / "2.keras")
    expected.append(trained.predict(x, verbose=0))
    spec = pickle.loads(pickle.dumps(ModelSpec((first, second))))
    checkpoints = load(spec)
    assert weakref.ref(checkpoints)() is checkpoints
    assert (checkpoints.size, checkpoints.layer, checkpoints.outputs, checkpoints.units) == (
        2,
        "head",
        C,
        8,
    )
    assert checkpoints.inputs == (ModelInput("pixels", (D_IN,), "float32"),)
    assert checkpoints.loss.description == "SparseCategoricalCrossentropy()"
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    hidden = keras.Model(trained.inputs, trained.get_layer("drop").output)
    for t in range(2):
        np.testing.assert_allclose(logits_of(checkpoints, x, t), expected[t], rtol=1e-5, atol=1e-6)
        traced = tf.function(checkpoints.logits_and_activations)(t, {"pixels": x})
        np.testing.assert_allclose(traced[0], expected[t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        checkpoints.logits_and_activations(1, x)[1], hidden(x, training=False), rtol=1e-5, atol=1e-6
    )


def test_factored_gradient_is_the_full_one(
    trained: keras.Model, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    """δ ⊗ h and δ against the tape on the model in inference mode, example by example."""
    checkpoints = load(ModelSpec((save(trained, tmp_path / "m.keras"),)))
    logits, h, _ = checkpoints.logits_and_activations(0, x)
    delta = checkpoints.loss.loss_grads(logits, y[:, None]).numpy()
    head = trained.get_layer("head")
    assert np.abs(head.bias.numpy()).min() > 1e-4
    for i in range(N):
        with tf.GradientTape() as tape:
            value = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
                y[i : i + 1], trained(x[i : i + 1], training=False)
            )
        kernel, bias = tape.gradient(value, [head.kernel.value, head.bias.value])
        np.testing.assert_allclose(np.outer(h[i], delta[i]), kernel, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(delta[i], bias, rtol=1e-4, atol=1e-6)


def test_checkpoints_that_differ_are_refused(trained: keras.Model, tmp_path: Path) -> None:
    def model(
        units: int = 8, classes: int = C, name: str = "head", width: int = D_IN, loss: str = "mse"
    ) -> str:
        made = keras.Sequential(
            [keras.Input((width,)), L.Dense(units, name="hidden"), L.Dense(classes, name=name)]
        )
        made.compile(loss=loss)
        return save(made, tmp_path / f"{units}-{classes}-{name}-{width}-{loss}.keras")

    base = model()
    for other, message in [
        (model(units=9), "number of units"),
        (model(classes=4), "number of outputs"),
        (model(name="tail"), "last dense layer: tail"),
        (model(width=7), "inputs"),
        (model(loss="mae"), "loss: MeanAbsoluteError.*pass `loss`"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(ModelSpec((other, base)))
        assert other in str(caught.value) and base in str(caught.value)
    assert (
        load(ModelSpec((model(loss="mae"), base), loss="log_cosh")).loss.description == "LogCosh()"
    )
    # Keras numbers unnamed layers anew in each process.
    assert load(ModelSpec((model(name="dense_7"), model(name="dense")))).layer == "dense"


def test_a_checkpoint_saved_uncompiled_takes_the_last_ones_loss(
    trained: keras.Model, tmp_path: Path
) -> None:
    paths = (save(make_model(), tmp_path / "0.keras"), save(trained, tmp_path / "1.keras"))
    assert load(ModelSpec(paths)).loss.task == "class"
    with pytest.raises(InputError, match="pass `loss`"):
        load(ModelSpec(paths[:1]))


SPARSE = "SparseCategoricalCrossentropy(from_logits=True)"


def cross_entropy(y: np.ndarray) -> Callable[[Any, int], Any]:
    return lambda output, i: -tf.nn.log_softmax(tf.cast(output, tf.float32))[0, y[i]]


def test_images_that_are_scaled_resized_and_augmented(
    tmp_path: Path, rng: np.random.Generator, y: np.ndarray
) -> None:
    images = rng.integers(0, 256, (N, 9, 8, 3)).astype(np.uint8)
    scale = L.Normalization(axis=-1)
    scale.adapt(images / 255.0)
    model = keras.Sequential(
        [
            keras.Input((9, 8, 3), dtype="uint8"),
            L.Rescaling(1 / 255),
            scale,
            L.Resizing(7, 7),
            L.CenterCrop(6, 6),
            L.RandomFlip(),
            L.RandomRotation(0.5),
            L.RandomZoom(0.5),
            L.RandomContrast(0.9),
            L.GaussianNoise(0.9),
            L.Conv2D(4, 3, activation="relu"),
            L.GlobalAveragePooling2D(),
            L.Dense(C, name="head", bias_initializer="normal"),
        ]
    )
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss=SPARSE))
    assert found.inputs[0].dtype == "uint8"
    assert_reference(found, model, model.get_layer("head"), images, y[:, None], cross_entropy(y))
    # Inactive, so that the same inputs always give the same features.
    np.testing.assert_array_equal(logits_of(found, images), logits_of(found, images))


def categories() -> keras.Model:
    """Numbers, a known category, a raw integer of a vocabulary, and tokens with a mask."""
    age = keras.Input((2,), name="age")
    city = keras.Input((1,), dtype="int64", name="city")
    code = keras.Input((1,), dtype="int64", name="code")
    words = keras.Input((5,), dtype="int32", name="words")
    encoded = L.CategoryEncoding(num_tokens=4, output_mode="one_hot")(city)
    looked_up = L.IntegerLookup(vocabulary=[100, 2000, 7], output_mode="multi_hot")(code)
    read = L.LSTM(3)(L.Embedding(20, 4, mask_zero=True)(words))
    h = L.Dense(6, activation="tanh")(
        L.Concatenate()(
            [L.Normalization(mean=[1.0, 2.0], variance=[4.0, 9.0])(age), encoded, looked_up, read]
        )
    )
    return keras.Model(
        {"age": age, "city": city, "code": code, "words": words},
        L.Dense(C, name="head", bias_initializer="normal")(h),
    )


def test_categories_and_tokens(tmp_path: Path, rng: np.random.Generator, y: np.ndarray) -> None:
    model = categories()
    words = rng.integers(1, 20, (N, 5)).astype(np.int32)
    words[::2, 3:] = 0
    data = {
        "age": rng.normal(size=(N, 2)).astype(np.float32),
        "city": rng.integers(0, 4, (N, 1)),
        "code": rng.choice([100, 2000, 7, 5], (N, 1)),
        "words": words,
    }
    path = save(model, tmp_path / "m.keras")
    found = load(ModelSpec((path,), loss=SPARSE))
    assert [(spec.name, spec.dtype) for spec in found.inputs] == [
        ("age", "float32"),
        ("city", "int64"),
        ("code", "int64"),
        ("words", "int32"),
    ]
    assert_reference(found, model, model.get_layer("head"), data, y[:, None], cross_entropy(y))
    # An architecture holds a vocabulary that it was made with.
    model.save_weights(tmp_path / "m.weights.h5")
    again = load(ModelSpec((str(tmp_path / "m.weights.h5"),), model=path, loss=SPARSE))
    np.testing.assert_array_equal(logits_of(again, data), logits_of(found, data))


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"]
)
@pytest.mark.parametrize("code", [False, True])
def test_other_precisions(
    policy: str, code: bool, tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    """The layer's input as the model computes it; logits, loss and its gradient in float32 from
    there on.
    """
    if code:
        model: Any = Coded(dtype=policy)
        model(x)
        head = model.head
    else:
        model = keras.Sequential(
            [
                keras.Input((D_IN,)),
                L.Dense(8, activation="relu", dtype=policy, name="hidden"),
                L.Dropout(0.5, dtype=policy),
                L.Dense(C, dtype=policy, name="head", bias_initializer="normal"),
                L.Activation("linear", dtype="float32"),
            ]
        )
        head = model.get_layer("head")
    path = save(model, tmp_path / "m.keras")
    found = load(ModelSpec((path,), loss=SPARSE))
    # The sizes of one rounding in the model's arithmetic.
    step = {"mixed_float16": 2.0**-11, "float16": 2.0**-11, "float64": 2.0**-20}.get(
        policy, 2.0**-8
    )
    logits, h, _ = found.logits_and_activations(0, x)
    assert logits.dtype == h.dtype == tf.float32
    assert_reference(
        found, model, head, x, y[:, None], cross_entropy(y), rtol=16 * step, atol=16 * step
    )
    own = np.asarray(tf.cast(model(x, training=False), tf.float32))
    np.testing.assert_allclose(logits, own, rtol=8 * step, atol=8 * step)
    # Exactly the matrix product of what the layer is given, in float32.
    kernel, bias = (tf.cast(variable.value, tf.float32) for variable in (head.kernel, head.bias))
    np.testing.assert_allclose(logits, h @ kernel + bias, rtol=1e-6, atol=1e-6)
    hidden = model.hidden(x) if code else model.get_layer("hidden")(x)
    np.testing.assert_array_equal(h, tf.cast(hidden, tf.float32))


@keras.saving.register_keras_serializable("test_preprocessing")
class Coded(keras.Model):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = L.Dense(8, activation="relu", dtype=self.dtype_policy)
        self.head = L.Dense(C, name="head", dtype=self.dtype_policy, bias_initializer="normal")

    def call(self, inputs: Any) -> Any:
        return tf.cast(self.head(self.hidden(inputs)), tf.float32)


def test_a_declared_input_is_cast_for_it(tmp_path: Path, x: np.ndarray) -> None:
    model = keras.Sequential([keras.Input((D_IN,), dtype="float64"), L.Dense(C, dtype="float64")])
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="mse"))
    assert found.inputs[0] == ModelInput(found.inputs[0].name, (D_IN,), "float64")
    np.testing.assert_allclose(
        logits_of(found, x.astype(np.float64)), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
