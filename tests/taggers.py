"""Models whose last dense layer works on positions, and data for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

L = keras.layers


N, P, WORDS, C = 8, 5, 11, 3


def tagger(*head: Any, mask_zero: bool = True) -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((P,), dtype="int32", name="words"),
            L.Embedding(WORDS, 4, keras.initializers.RandomNormal(stddev=1), mask_zero=mask_zero),
            L.LSTM(6, return_sequences=True),
            *(head or [L.Dense(C, bias_initializer="normal", name="head")]),
        ]
    )


def nested() -> keras.Model:
    words = keras.Input((P,), dtype="int32", name="words")
    inner_in = keras.Input((P, 4))
    inner = keras.Model(
        inner_in, L.Dense(C, name="head")(L.GRU(6, return_sequences=True)(inner_in)), name="inner"
    )
    return keras.Model(
        words, L.Dropout(0.5)(inner(L.Embedding(WORDS, 4, "normal", mask_zero=True)(words)))
    )


def segmenter() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((2, 3, 2)),
            L.Conv2D(4, 2, padding="same", activation="relu"),
            L.Dense(C, name="head"),
        ]
    )


SPARSE = keras.losses.SparseCategoricalCrossentropy


MODELS: dict[str, tuple[Callable[[], keras.Model], Any]] = {
    "masked": (tagger, SPARSE(from_logits=True)),
    "not masked": (lambda: tagger(mask_zero=False), SPARSE(from_logits=True)),
    "summed": (tagger, SPARSE(from_logits=True, reduction="sum")),
    "softmax": (lambda: tagger(L.Dense(C, activation="softmax", name="head")), SPARSE()),
    "softmax layer": (
        lambda: tagger(L.Dense(C, name="head"), L.Dropout(0.3), L.Activation("softmax")),
        SPARSE(),
    ),
    "time distributed": (
        lambda: tagger(L.TimeDistributed(L.Dense(C, name="head"), name="each")),
        SPARSE(from_logits=True),
    ),
    "ignored class": (tagger, SPARSE(from_logits=True, ignore_class=1)),
    "ignored outside": (lambda: tagger(mask_zero=False), SPARSE(from_logits=True, ignore_class=-1)),
    "one hot": (
        tagger,
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    ),
    "automatic": (
        lambda: tagger(L.Dense(C, activation="softmax", name="head")),
        keras.losses.CategoricalFocalCrossentropy(),
    ),
    "binary": (
        lambda: tagger(L.Dense(1, activation="sigmoid", name="head")),
        keras.losses.BinaryCrossentropy(),
    ),
    "squared error": (lambda: tagger(L.Dense(2, name="head")), keras.losses.MeanSquaredError()),
    "nested": (nested, SPARSE(from_logits=True)),
    "picture": (segmenter, SPARSE(from_logits=True)),
}


def data(model: keras.Model, loss: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, zeros at the ends of sequences, and labels as training has them."""
    rng = np.random.default_rng(7)
    shape = model.input_shape[1:]
    if len(shape) > 1:
        return rng.normal(size=(N, *shape)).astype(np.float32), rng.integers(0, C, (N, *shape[:-1]))
    words = rng.integers(1, WORDS, (N, P))
    for i, length in enumerate([5, 4, 3, 2, 1, 5, 4, 2]):
        words[i, length:] = 0
    if isinstance(loss, keras.losses.MeanSquaredError):
        return words, rng.normal(size=(N, P, 2)).astype(np.float32)
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        return words, rng.integers(0, 2, (N, P, 1))
    labels = rng.integers(0, C, (N, P))
    ignored = loss.get_config().get("ignore_class")
    if ignored is not None:
        labels[rng.random(labels.shape) < 0.3] = ignored
        labels[:, 0] = 2
    if not isinstance(loss, SPARSE):
        return words, np.eye(C, dtype=np.float32)[labels]
    return words, labels


def head_of(model: keras.Model) -> Any:
    """The layer `head` of a model, within other models or wrappers, too."""
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        if inner.name == "head":
            return inner
        if isinstance(inner, keras.Model):
            return head_of(inner)
    raise AssertionError("no layer is called head")


def dense_tagger() -> keras.Model:
    """Without recurrent layers, whose last bits depend on the batch."""
    table = L.Embedding(WORDS, 4, keras.initializers.RandomNormal(stddev=1), mask_zero=True)
    return keras.Sequential(
        [
            keras.Input((P,), dtype="int32"),
            table,
            L.Dense(6, activation="relu"),
            L.Dense(C, name="head"),
        ]
    )
