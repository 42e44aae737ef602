"""Keras losses by name, by text and by configuration, of Keras and registered ones."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from transforms.core.errors import InputError
from transforms.models.losses.compiled_losses import resolve
from transforms.models.losses.keras_losses import FunctionLoss, KerasLoss, from_name, from_text

L = keras.losses


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mse(", "not a loss; expected a name"),
        ("Huber(delta=open('x'))", "not a loss; expected a name"),
        ("Huber(2.0)", "not a loss; expected a name"),
        ("Huber(gamma=2.0)", "does not take {'gamma': 2.0}"),
    ],
)
def test_texts_that_name_no_loss(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_text(text, 3)
    assert "\n" not in str(caught.value)


def test_name_and_arguments_of_a_loss() -> None:
    builtin = KerasLoss.of(from_text("huber(delta=0.5)", 3))
    assert (builtin.name, builtin.is_builtin, builtin.from_logits) == ("Huber", True, False)
    assert builtin.arguments["delta"] == 0.5
    function = KerasLoss.of(from_name("test_losses>cubed", {}, 3))
    assert (function.name, function.is_builtin) == ("test_losses>cubed", False)
    assert isinstance(function.instance, FunctionLoss)
    custom = KerasLoss.of(from_name("test_losses>Scaled", {"factor": 3.0}, 3))
    assert (custom.name, custom.arguments["factor"]) == ("test_losses>Scaled", 3.0)
    assert custom.plain_name == "testlosses>scaled"
