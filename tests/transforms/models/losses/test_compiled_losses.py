"""The loss of a compiled model: override, description, pickling, outputs, refusals."""

from __future__ import annotations

import pickle
from typing import Any

import keras
import numpy as np
import pytest

from transforms.core.errors import InputError
from transforms.models.losses.compiled_losses import of_output, resolve
from transforms.models.losses.labels import LabelRule
from transforms.models.losses.loss import Formula

L = keras.losses


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


def test_a_loss_pickles_as_the_arguments_that_it_is_made_of() -> None:
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
    ],
)
def test_refusals(
    compiled: Any, override: str | None, activation: str, outputs: int, weights: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve(compiled, override, activation, outputs, weights)
    assert "\n" not in str(caught.value)


def test_a_list_of_losses_must_be_as_long_as_the_outputs() -> None:
    with pytest.raises(InputError, match=r"compiled with 3 losses for 2 outputs \(a, b\)"):
        of_output(["mse"] * 3, None, ["a", "b"], 0)
    with pytest.raises(InputError, match="compiled with 1 loss weights for 2 outputs"):
        of_output("mse", [1.0], ["a", "b"], 0)


def test_one_loss_serves_every_output_and_a_dictionary_names_one() -> None:
    names = ["a", "b"]
    assert of_output("mse", None, names, 1) == ("mse", None)
    assert of_output(["mse", "mae"], [1.0, 2.0], names, 1) == ("mae", 2.0)
    assert of_output({"b": "mae"}, {"b": 0.5}, names, 1) == ("mae", 0.5)
    assert of_output({"b": "mae"}, None, names, 0) == (None, None)
    assert of_output({"x": "mae"}, None, ["a"], 0) == ({"x": "mae"}, None)


@pytest.mark.parametrize(
    ("text", "activation", "outputs", "task", "rule", "formula"),
    [
        (
            "sparse_categorical_crossentropy",
            "softmax",
            3,
            "class",
            "INDEX",
            "SOFTMAX_CROSS_ENTROPY",
        ),
        (
            "categorical_crossentropy",
            "softmax",
            3,
            "class",
            "DISTRIBUTION",
            "SOFTMAX_CROSS_ENTROPY",
        ),
        ("categorical_crossentropy", "sigmoid", 3, "class", "DISTRIBUTION", "AUTOMATIC"),
        ("binary_crossentropy", "sigmoid", 1, "binary", "FRACTIONS", "SIGMOID_CROSS_ENTROPY"),
        ("binary_crossentropy", "sigmoid", 2, "multilabel", "FRACTIONS", "SIGMOID_CROSS_ENTROPY"),
        ("binary_crossentropy", "softmax", 2, "class", "FRACTIONS", "AUTOMATIC"),
        ("mse", "linear", 1, "regression", "FINITE", "MEAN_SQUARED_ERROR"),
        ("mse", "sigmoid", 2, "multilabel", "FRACTIONS", "AUTOMATIC"),
        ("hinge", "linear", 1, "regression", "SIGNS", "AUTOMATIC"),
        ("categorical_hinge", "linear", 2, "class", "SIGNED_ONE_HOT", "AUTOMATIC"),
    ],
)
def test_task_labels_and_formula(
    text: str, activation: str, outputs: int, task: str, rule: str, formula: str
) -> None:
    loss = resolve(text, None, activation, outputs)
    assert (loss.task, loss.label_rule, loss.formula) == (task, LabelRule[rule], Formula[formula])
    assert loss.label_is_integer == (rule == "INDEX")
    assert loss.label_width == (1 if rule == "INDEX" else outputs)
