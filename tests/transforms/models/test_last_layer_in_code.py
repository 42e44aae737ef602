"""Models that end in code: the last dense layer is found by running them, and its gradients are the
tape's; models for which they would not be are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small import D_IN, C, L, N, assert_reference, assert_refused, logits_of, save
from transforms.core.errors import InputError
from transforms.models.checkpoints import ModelSpec, load
from transforms.models.inputs import ModelInput

register = keras.saving.register_keras_serializable("test_tracing")


class Base(keras.Model):
    """A trunk with layers that inference mode changes; the last dense layer is not made last."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.head = L.Dense(C, bias_initializer="normal", name="head")
        self.hidden = L.Dense(8, activation="relu", name="hidden")
        self.norm = L.BatchNormalization(momentum=0.5)
        self.drop = L.Dropout(0.5)

    def trunk(self, inputs: Any, training: Any) -> Any:
        return self.drop(self.norm(self.hidden(inputs), training=training), training=training)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.head(self.trunk(inputs, training))


@register
class Plain(Base):
    pass


@register
class WithSoftmax(Base):
    """Raw TensorFlow between and after the layers."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        h = self.trunk(tf.math.asinh(inputs), training)
        return tf.nn.softmax(self.head(h))


@register
class Sigmoids(Base):
    def call(self, inputs: Any) -> Any:
        return keras.activations.sigmoid(self.head(self.hidden(inputs)))


@register
class OwnSoftmax(Base):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.head = L.Dense(C, activation="softmax", name="head")


@register
class Squeezed(Base):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.head = L.Dense(1, name="head")

    def call(self, inputs: Any) -> Any:
        return self.head(self.hidden(inputs))[:, 0]


@register
class Choosing(Base):
    """A condition inside the trunk, with a dense layer of its own."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        h = self.trunk(inputs, training)
        return self.head(
            tf.map_fn(
                lambda row: tf.cond(
                    tf.reduce_max(row) > 0.5, lambda: row * 2.0, lambda: tf.square(row)
                ),
                h,
            )
        )


BUILDS: list[tuple[type[Base], str, Callable[[Any, Any], Any]]] = [
    (
        Plain,
        "SparseCategoricalCrossentropy(from_logits=True)",
        lambda p, y: tf.nn.softmax_cross_entropy_with_logits(tf.one_hot([y], C), p),
    ),
    (WithSoftmax, "sparse_categorical_crossentropy", lambda p, y: -tf.math.log(p[0, y])),
    (OwnSoftmax, "sparse_categorical_crossentropy", lambda p, y: -tf.math.log(p[0, y])),
    (
        Choosing,
        "SparseCategoricalCrossentropy(from_logits=True)",
        lambda p, y: -tf.nn.log_softmax(p)[0, y],
    ),
    (
        Sigmoids,
        "binary_crossentropy",
        lambda p, y: -tf.reduce_mean(tf.math.log(tf.where(tf.one_hot([y], C) == 1, p, 1 - p))),
    ),
    (Squeezed, "mse", lambda p, y: (p[0] - float(y)) ** 2),
]


def trained(kind: type[Base], x: np.ndarray, y: np.ndarray) -> keras.Model:
    model = kind()
    targets = keras.utils.to_categorical(y, C) if kind is Sigmoids else y
    loss: Any = {Sigmoids: "binary_crossentropy", Squeezed: "mse"}.get(
        kind, "sparse_categorical_crossentropy"
    )
    if kind in (Plain, Choosing):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(x, targets, batch_size=4, epochs=2, verbose=0)
    return model


@pytest.mark.parametrize(
    ("kind", "loss", "value"), BUILDS, ids=[kind.__name__ for kind, _, _ in BUILDS]
)
def test_gradients_are_the_tapes(
    kind: type[Base],
    loss: str,
    value: Callable[[Any, Any], Any],
    tmp_path: Path,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    model = trained(kind, x, y)
    first = save(model, tmp_path / "1.keras")
    model.fit(x, keras.utils.to_categorical(y, C) if kind is Sigmoids else y, verbose=0)
    found = load(ModelSpec((save(model, tmp_path / "2.keras"), first)))
    assert found.layer == "head" and found.inputs == (ModelInput("input_1", (D_IN,), "float32"),)
    assert found.loss.description == load(ModelSpec((first,), loss=loss)).loss.description
    labels = np.eye(C, dtype=np.float32)[y] if kind is Sigmoids else y[:, None]
    assert_reference(
        found, model, model.head, x, labels, lambda output, i: tf.reduce_sum(value(output, y[i]))
    )
    assert np.abs(logits_of(found, x, 0) - logits_of(found, x, 1)).max() > 1e-4


def build_plain() -> keras.Model:
    model = Plain()
    model(np.zeros((1, D_IN), np.float32))
    return model


def build_declared() -> keras.Model:
    model = Plain()
    model.input_spec = keras.InputSpec(shape=(None, D_IN))
    return model


def test_weights_files_of_a_model_that_code_builds(
    tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    model = trained(Plain, x, y)
    model.save_weights(tmp_path / "m.weights.h5")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    for name in ("m.weights.h5", "ckpt"):
        found = load(
            ModelSpec((str(tmp_path / name),), model=f"{__name__}:build_plain", loss="mse")
        )
        np.testing.assert_allclose(
            logits_of(found, x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
        )
        with pytest.raises(InputError, match=r"gives a model without variables.*or call it once"):
            load(ModelSpec((str(tmp_path / name),), model=f"{__name__}:build_declared", loss="mse"))


@register
class Tokens(keras.Model):
    """Whole numbers and a second input, by name.

    Its inputs are declared, because the shapes that it was built with have no dtypes.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.input_spec = {
            "words": keras.InputSpec(shape=(None, 4), dtype="int32", name="words"),
            "extra": keras.InputSpec(shape=(None, 2), dtype="float32", name="extra"),
        }
        self.embed = L.Embedding(3000, 5)
        self.heads = [L.Dense(C, name="kind"), L.Dense(1, name="price")]

    def call(self, inputs: Any) -> Any:
        h = tf.concat(
            [tf.reduce_mean(self.embed(inputs["words"]), axis=1), inputs["extra"]], axis=1
        )
        return {"price": self.heads[1](h), "kind": self.heads[0](h)}


@register
class Listed(Tokens):
    """Likewise, undeclared and without names."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.input_spec = None

    def call(self, inputs: Any) -> Any:
        given = super().call({"words": inputs[0], "extra": inputs[1]})
        return [given["kind"], given["price"]]


def test_names_of_inputs_and_outputs(tmp_path: Path, y: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    data = {
        "words": rng.integers(2000, 3000, (N, 4)).astype(np.int32),
        "extra": rng.normal(size=(N, 2)).astype(np.float32),
    }
    model = Tokens()
    model(data)
    model.compile(
        "sgd",
        {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "price": "mse"},
    )
    path = save(model, tmp_path / "m.keras")
    with pytest.raises(
        InputError, match=r"has 2 outputs \(kind, price\); choose one with `output_name`"
    ):
        load(ModelSpec((path,)))
    found = load(ModelSpec((path,), output_name="kind"))
    assert found.inputs == (
        ModelInput("extra", (2,), "float32"),
        ModelInput("words", (4,), "int32"),
    )
    assert_reference(
        found,
        model,
        model.heads[0],
        data,
        y[:, None],
        lambda out, i: -tf.nn.log_softmax(out["kind"])[0, y[i]],
    )
    found = load(ModelSpec((path,), output_name="price"))
    target = y.astype(np.float32) + 2
    assert_reference(
        found,
        model,
        model.heads[1],
        data,
        target[:, None],
        lambda out, i: (out["price"][0, 0] - target[i]) ** 2,
    )

    listed = Listed()
    flat = [data["words"].astype(np.float32), data["extra"]]
    listed(flat)
    listed.compile("sgd", ["mse", "mae"])
    found = load(ModelSpec((save(listed, tmp_path / "l.keras"),), output_name="output_2"))
    assert [spec.name for spec in found.inputs] == ["input_1", "input_2"]
    assert (found.layer, found.output, found.loss.description) == (
        "price",
        "output_2",
        "MeanAbsoluteError()",
    )
    np.testing.assert_allclose(logits_of(found, flat), listed(flat)[1], rtol=1e-5, atol=1e-6)


@register
class Ending(L.Layer):
    """A layer with a dense layer inside."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.inner = L.Dense(C, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, inputs: Any) -> Any:
        return tf.identity(self.inner(tf.nn.relu(inputs)))


def test_a_functional_model_that_ends_in_a_layer_of_ones_own(
    tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    inputs = keras.Input((D_IN,), name="pixels")
    model = keras.Model(inputs, Ending(name="ending")(L.Dense(7)(inputs)))
    found = load(
        ModelSpec(
            (save(model, tmp_path / "m.keras"),),
            loss="SparseCategoricalCrossentropy(from_logits=True)",
        )
    )
    assert (found.layer, found.inputs) == ("inner", (ModelInput("pixels", (D_IN,), "float32"),))
    dense = model.get_layer("ending").inner
    assert_reference(
        found, model, dense, x, y[:, None], lambda output, i: -tf.nn.log_softmax(output)[0, y[i]]
    )


def test_several_threads_do_not_see_each_other(
    tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    found = load(ModelSpec((save(trained(Plain, x, y), tmp_path / "m.keras"),)))
    expected = [logits_of(found, x + i) for i in range(4)]
    wrong = []

    def run(i: int) -> None:
        for _ in range(30):
            if not np.array_equal(logits_of(found, x + i), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What Keras finds of the logits decides how from_logits=True after a softmax is read.


@pytest.mark.parametrize(("kind", "word"), [(WithSoftmax, ""), (OwnSoftmax, "")])
def test_from_logits_after_a_softmax_follows_keras(
    kind: type[Base], word: str, tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    model = trained(kind, x, y)
    found = load(
        ModelSpec(
            (save(model, tmp_path / "m.keras"),),
            loss="SparseCategoricalCrossentropy(from_logits=True)",
        )
    )
    assert found.loss.description == f"SparseCategoricalCrossentropy() after softmax{word}"


@register
class Detached(Base):
    def call(self, inputs: Any) -> Any:
        return tf.identity(tf.nn.softmax(self.head(self.hidden(inputs))))


def test_a_softmax_that_keras_does_not_find(tmp_path: Path, x: np.ndarray, y: np.ndarray) -> None:
    model = trained(Detached, x, y)
    loss = "SparseCategoricalCrossentropy(from_logits=True)"
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss=loss))
    assert found.loss.description.endswith("after softmax as logits")
    assert_reference(
        found,
        model,
        model.head,
        x,
        y[:, None],
        lambda output, i: -tf.nn.log_softmax(output)[0, y[i]],
    )


# Refusals


def variant(
    name: str, call: Callable[..., Any], head: Any = None, **layers: Any
) -> Callable[[], keras.Model]:
    """A registered subclass with another `call`, as a function that makes it, called once."""

    def init(self: Any, **kwargs: Any) -> None:
        Base.__init__(self, **kwargs)
        self.head = L.Dense(D_IN, name="head") if head is None else head()
        for key, made in layers.items():
            setattr(self, key, made())

    kind = register(type(name, (Base,), {"__init__": init, "call": call}))

    def build() -> keras.Model:
        model = kind()
        model(np.ones((2, D_IN), np.float32))
        return model

    return build


def in_a_condition(self: Any, inputs: Any) -> Any:
    return tf.cond(tf.reduce_sum(inputs) > 1e9, lambda: 2 * inputs, lambda: self.head(inputs))


def tied(self: Any, inputs: Any) -> Any:
    return (
        self.head(tf.matmul(inputs, self.head.kernel, transpose_b=True))
        if self.head.built
        else self.head(inputs)
    )


REFUSED: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "twice": (variant("A", lambda self, x: self.head(self.head(x))), "head is called 2 times"),
    "not at the end": (
        variant("B", lambda self, x: tf.nn.relu(self.head(x))),
        "head is followed by something else",
    ),
    "clipped": (
        variant("C", lambda self, x: tf.clip_by_value(self.head(x), -100, 100)),
        "head is followed by something else",
    ),
    "skip connection": (
        variant("D", lambda self, x: self.head(x) + x),
        "head is followed by something else",
    ),
    "per position": (
        variant("E", lambda self, x: tf.reduce_mean(self.head(tf.stack([x, x], 1)), 1)),
        "head works on each position of a tensor of shape .*expected one vector per example",
    ),
    "not called": (
        variant("F", lambda self, x: self.hidden(x)),
        r"last dense layer hidden \(Dense\) has the activation relu",
    ),
    "convolution": (
        variant(
            "G",
            lambda self, x: self.conv(tf.reshape(x, [-1, 1, 1, D_IN]))[:, 0, 0],
            conv=lambda: L.Conv2D(C, 1),
        ),
        r"no Dense layer of G is the last one.*head is not called",
    ),
    "activation": (
        variant(
            "H", lambda self, x: self.head(x), lambda: L.Dense(C, activation="tanh", name="head")
        ),
        "has the activation tanh",
    ),
    "no bias": (
        variant("I", lambda self, x: self.head(x), lambda: L.Dense(C, use_bias=False, name="head")),
        "has no bias",
    ),
    "tied": (variant("J", tied), "kernel is used elsewhere in J too"),
    "stopped": (
        variant("K", lambda self, x: tf.stop_gradient(self.head(x))),
        "or the gradient is stopped",
    ),
    "in a condition": (
        variant("M", in_a_condition),
        "head is called 1 times, or inside tf.cond, a loop or a tf.function",
    ),
    "in a function": (
        variant("N", tf.function(lambda self, x: self.head(x))),
        "head is called inside tf.cond, a loop or a tf.function",
    ),
    "batch": (
        variant("Q", lambda self, x: self.head(x - tf.reduce_mean(x, axis=0))),
        "depends on the rest of its batch",
    ),
    "made when called": (variant("P", lambda self, x: L.Dense(C)(x)), "head is not called"),
}


stacked = variant(
    "O", lambda self, x: self.other(self.head(x)), other=lambda: L.Dense(D_IN, name="other")
)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    build, message = REFUSED[name]
    assert_refused(save(build(), tmp_path / "m.keras"), message)


def test_a_stack_of_dense_layers_is_not_ambiguous(tmp_path: Path) -> None:
    path = save(stacked(), tmp_path / "m.keras")
    assert load(ModelSpec((path,), loss="mse")).layer == "other"
    assert load(ModelSpec((path,), loss="mse", layer="other")).layer == "other"
    with pytest.raises(
        InputError,
        match=r"no Dense layer of O is the last one.*: .*head is followed by something else",
    ):
        load(ModelSpec((path,), loss="mse", layer="head"))
    with pytest.raises(
        InputError,
        match=r"`layer=drop` is not a dense layer of .*; its dense layers are head, .*other",
    ):
        load(ModelSpec((path,), loss="mse", layer="drop"))


def test_shapes_of_inputs_must_be_known(tmp_path: Path) -> None:
    path = save(Plain(), tmp_path / "m.keras")
    with pytest.raises(
        InputError, match=r"subclassed model \(Plain\) that does not declare the shapes.*input_spec"
    ):
        load(ModelSpec((path,), loss="mse"))
    declared = save(build_declared(), tmp_path / "n.keras")
    with pytest.raises(InputError, match="does not declare the shapes"):
        load(ModelSpec((declared,), loss="mse"))


@register
class Free(Base):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.input_spec = keras.InputSpec(shape=(None, None))


@register
class TwoArguments(Base):
    def call(self, inputs: Any, others: Any) -> Any:
        return self.head(self.hidden(inputs + others))


@register
class Miscounted(Base):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.input_spec = [keras.InputSpec(dtype="float32"), keras.InputSpec(dtype="float32")]


@register
class Bare(keras.Model):
    """Without a dense layer; takes truth values."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.input_spec = keras.InputSpec(shape=(None, D_IN), dtype="bool")
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, inputs: Any) -> Any:
        return tf.cast(inputs, tf.float32) * self.scale


@register
class Late(Base):
    """A variable that only a call in inference mode makes, once the file has been read."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.head(
            self.late(inputs) if getattr(self, "ready", False) else self.hidden(inputs)
        )

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        if not getattr(self, "ready", False):
            self.ready, self.late = True, L.Dense(8)


@register
class Raising(Base):
    def call(self, inputs: Any) -> Any:
        if isinstance(inputs, tf.Tensor) and inputs.shape[0] not in (1, None):
            raise ValueError("one at a time")
        return self.head(inputs)


def called(kind: type[keras.Model], *inputs: Any) -> keras.Model:
    model = kind()
    model(*inputs)
    return model


ROW = np.ones((1, D_IN), np.float32)
UNKNOWN: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "free shape": (
        lambda: called(Free, ROW),
        r"input_1 has the free shape \(None,\); declare a fixed one in input_spec",
    ),
    "two arguments": (
        lambda: called(TwoArguments, ROW, ROW),
        "cannot be called with .*missing a required argument: 'others'",
    ),
    "declared otherwise": (
        lambda: unchecked(Miscounted),
        "input_spec declares 2 inputs, the model was built with 1",
    ),
    "no dense layer": (lambda: called(Bare, ROW > 0), "Bare holds no Dense layer"),
    "late variables": (lambda: called(Late, ROW), "come into being only when the model is called"),
    "cannot be called": (
        lambda: called(Raising, ROW),
        r"cannot be called with random numbers of input_1 \(6,\) float32 \(.*one at a time",
    ),
}


def unchecked(kind: type[keras.Model]) -> keras.Model:
    model = kind()
    declared, model.input_spec = model.input_spec, None
    model(ROW)
    model.input_spec = declared
    return model


@pytest.mark.parametrize("name", UNKNOWN)
def test_models_that_cannot_be_run(name: str, tmp_path: Path) -> None:
    build, message = UNKNOWN[name]
    assert_refused(save(build(), tmp_path / "m.keras"), message)
