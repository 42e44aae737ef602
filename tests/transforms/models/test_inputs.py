"""Inputs and outputs of a model, by name: several outputs, and inputs in lists and dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small import D_IN, C, L, assert_reference, logits_of, save
from transforms.core.errors import InputError
from transforms.models.checkpoints import ModelSpec, load
from transforms.models.inputs import ModelInput

SPARSE = "SparseCategoricalCrossentropy(from_logits=True)"


def two_outputs(as_dict: bool = False, loss: Any = None, **compiled: Any) -> keras.Model:
    """Classes and a price over one trunk; the price also sees the class logits."""
    inputs = keras.Input((D_IN,))
    h = L.Dense(5, activation="tanh")(inputs)
    kind = L.Dense(C, name="kind", bias_initializer="normal")(h)
    price = L.Dense(1, name="price")(L.Concatenate()([h, kind]))
    model = keras.Model(inputs, {"z_price": price, "a_kind": kind} if as_dict else [price, kind])
    if loss is not None:
        model.compile("sgd", loss, **compiled)
    return model


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("output", ["kind", "price"])
def test_one_of_several_outputs(
    as_dict: bool, output: str, tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    prefix = {"kind": "a_", "price": "z_"}[output] if as_dict else ""
    names = (
        {"kind": "a_kind", "price": "z_price"} if as_dict else {"kind": "kind", "price": "price"}
    )
    losses = {
        names["kind"]: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        names["price"]: "mse",
    }
    model = two_outputs(as_dict, losses, loss_weights={names["kind"]: 0.5, names["price"]: 3.0})
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), output_name=prefix + output))
    assert (found.layer, found.output) == (output, prefix + output)
    assert found.loss.task == {"kind": "class", "price": "regression"}[output]
    targets = {"kind": y, "price": x[:, 0] + 3}

    def value(one: Any, i: int) -> Any:
        given = one[prefix + output] if as_dict else one[["price", "kind"].index(output)]
        if output == "kind":
            return 0.5 * tf.nn.sparse_softmax_cross_entropy_with_logits(y[i : i + 1], given)[0]
        return 3.0 * (given[0, 0] - targets["price"][i]) ** 2

    assert_reference(found, model, model.get_layer(output), x, targets[output][:, None], value)


def test_losses_and_weights_in_a_list_or_one_for_all(tmp_path: Path) -> None:
    def description(output: str, loss: Any, **compiled: Any) -> str:
        path = save(two_outputs(False, loss, **compiled), tmp_path / "m.keras")
        return load(ModelSpec((path,), output_name=output)).loss.description

    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert description("price", ["mae", sparse]) == "MeanAbsoluteError()"
    assert description("kind", ("mae", sparse)) == "SparseCategoricalCrossentropy()"
    assert (
        description("kind", ["mae", "mse"], loss_weights=[1.0, 0.5])
        == "MeanSquaredError() times 0.5"
    )
    assert description("kind", "mse") == description("price", "mse") == "MeanSquaredError()"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, r"m.keras has 2 outputs \(a_kind, z_price\); choose one with `output_name`"),
        ("kind", "`output_name=kind` is not an output of .*; its outputs are a_kind, z_price"),
        ("z_price", "hold no compiled loss; pass `loss`"),
    ],
)
def test_outputs_that_cannot_be_chosen(output: str | None, message: str, tmp_path: Path) -> None:
    path = save(two_outputs(True, {"a_kind": "mse"}), tmp_path / "m.keras")
    with pytest.raises(InputError, match=message):
        load(ModelSpec((path,), output_name=output))


def test_outputs_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    inputs = keras.Input((D_IN,))
    dense = L.Dense(2, name="twice")
    model = keras.Model(inputs, [dense(inputs), dense(L.ReLU()(inputs))])
    with pytest.raises(InputError, match="`output_name=twice` is the name of several outputs"):
        load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="mse", output_name="twice"))


def test_the_only_output_may_be_named(tmp_path: Path, x: np.ndarray) -> None:
    model = keras.Sequential([keras.Input((D_IN,)), L.Dense(C, name="head")])
    path = save(model, tmp_path / "m.keras")
    found = load(ModelSpec((path,), loss="mse", output_name="head"))
    assert found.output is None
    np.testing.assert_array_equal(
        logits_of(found, x), logits_of(load(ModelSpec((path,), loss="mse")), x)
    )
    with pytest.raises(InputError, match="its outputs are head"):
        load(ModelSpec((path,), loss="mse", output_name="tail"))


def test_a_layer_that_only_other_outputs_share_is_no_obstacle(
    tmp_path: Path, x: np.ndarray
) -> None:
    inputs = keras.Input((D_IN,))
    shared = L.Dense(D_IN, name="shared")
    model = keras.Model(
        inputs, [shared(inputs), shared(L.ReLU()(inputs)), L.Dense(C, name="own")(inputs)]
    )
    path = save(model, tmp_path / "m.keras")
    np.testing.assert_allclose(
        logits_of(load(ModelSpec((path,), loss="mse", output_name="own")), x),
        model.predict(x, verbose=0)[2],
        rtol=1e-5,
        atol=1e-6,
    )


def dict_inputs() -> keras.Model:
    """Keys in another order than their alphabet's, and inputs that cannot be taken for each other
    by shape.
    """
    wide, deep = keras.Input((D_IN,), name="wide"), keras.Input((D_IN,), name="deep")
    h = L.Concatenate()([L.Dense(4, activation="relu")(wide), L.Dense(2)(deep)])
    return keras.Model(
        {"wide": wide, "deep": deep}, L.Dense(C, name="head", activation="softmax")(h)
    )


def test_a_dictionary_of_inputs(tmp_path: Path, x: np.ndarray, y: np.ndarray) -> None:
    model = dict_inputs()
    found = load(
        ModelSpec((save(model, tmp_path / "m.keras"),), loss="sparse_categorical_crossentropy")
    )
    assert [spec.name for spec in found.inputs] == ["deep", "wide"]
    data = {"wide": x, "deep": x[::-1].copy()}
    expected = model.predict(data, verbose=0)
    np.testing.assert_allclose(
        tf.nn.softmax(logits_of(found, data)), expected, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        logits_of(found, [data["deep"], data["wide"]]), logits_of(found, data)
    )

    def value(one: Any, i: int) -> Any:
        return -tf.math.log(one[0, y[i]])

    assert_reference(found, model, model.get_layer("head"), data, y[:, None], value)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_model_inside_may_be_called_with_a_dictionary(
    as_dict: bool, tmp_path: Path, x: np.ndarray
) -> None:
    """Keras matches it by name to inputs in another order."""
    b, a = keras.Input((D_IN,), name="b"), keras.Input((D_IN,), name="a")
    end = L.Dense(C)(L.Concatenate()([L.Dense(4)(b), L.Dense(2)(a)]))
    inner = keras.Model({"b": b, "a": a} if as_dict else [b, a], end, name="inner")
    first, second = keras.Input((D_IN,), name="first"), keras.Input((D_IN,), name="second")
    model = keras.Model([first, second], inner({"a": first, "b": second}))
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="mse"))
    data = [x, x[::-1].copy()]
    np.testing.assert_allclose(
        logits_of(found, data), model.predict(data, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_several_inputs_as_a_list(tmp_path: Path) -> None:
    tokens, extra = keras.Input((4,), dtype="int32", name="tokens"), keras.Input((2,), name="extra")
    h = L.Concatenate()([L.GlobalAveragePooling1D()(L.Embedding(10, 3)(tokens)), extra])
    model = keras.Model([tokens, extra], L.Dense(C)(h))
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="mse"))
    assert found.inputs == (
        ModelInput("tokens", (4,), "int32"),
        ModelInput("extra", (2,), "float32"),
    )
    a, b = np.array([[1, 2, 3, 9]], np.int32), np.array([[0.5, -1.0]], np.float32)
    expected = model.predict([a, b], verbose=0)
    for inputs in ([a, b], {"extra": b, "tokens": a}):
        np.testing.assert_allclose(logits_of(found, inputs), expected, rtol=1e-5, atol=1e-6)
