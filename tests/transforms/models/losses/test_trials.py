"""Losses that give an example, or a position, no value of its own are refused."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from transforms.core.errors import InputError
from transforms.models.losses import trials
from transforms.models.losses.compiled_losses import resolve


@keras.saving.register_keras_serializable("test_losses")
def of_the_whole_batch(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


@keras.saving.register_keras_serializable("test_losses")
def centred(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(
        keras.ops.square(y_true - y_pred + keras.ops.mean(y_pred, axis=0)), axis=-1
    )


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


@keras.saving.register_keras_serializable("test_losses")
def neighbours(y: Any, z: Any) -> Any:
    """Looks at the position before, so that a position has no loss of its own."""
    return keras.ops.mean(
        keras.ops.square(z - keras.ops.roll(y, 1, axis=1 if len(y.shape) == 3 else -1)), axis=-1
    )


def test_a_loss_that_looks_at_neighbours_is_refused() -> None:
    with pytest.raises(
        InputError, match="does not give each position of a sequence a value of its own"
    ):
        resolve(None, "test_losses>neighbours", "linear", 2, per_token=True)


@keras.saving.register_keras_serializable("test_losses")
def of_pairs(y: Any, z: Any) -> Any:
    return keras.ops.mean(keras.ops.square(keras.ops.reshape(z, (-1, 2)) - y), axis=-1)


def test_a_loss_that_cannot_be_computed_from_positions_is_refused() -> None:
    with pytest.raises(InputError, match="of_pairs cannot be computed from positions: "):
        resolve(None, "test_losses>of_pairs", "linear", 2, per_token=True)


def test_trials_pass_losses_of_single_examples_and_positions() -> None:
    """Protects losses that the trials must not refuse: neither call may raise."""
    loss = resolve(None, "mae", "linear", 2, per_token=True)
    trials.check_per_example(loss, "mae")
    trials.check_per_position(loss, "mae")
