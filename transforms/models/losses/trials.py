"""Trials of arbitrary Keras losses: does each example, and each position, have its own loss?"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError, first_line
from transforms.models.losses.labels import LabelRule
from transforms.models.losses.loss import Loss

# Rounding of a float32 loss between batches of different sizes stays below.
_RELATIVE_TOLERANCE, _ABSOLUTE_TOLERANCE = 1e-4, 1e-6


def check_per_example(loss: Loss, name: str) -> None:
    """Checks that an example's loss does not depend on the other examples of its batch.

    Args:
        loss: the loss to try.
        name: its name, for messages.

    Raises:
        InputError: it does, or the loss cannot be computed at all.
    """
    n = 3
    logits, labels = _trial(loss, n)
    try:
        raw = labels[:, 0] if loss.label_is_integer else labels
        values = tf.convert_to_tensor(
            loss.keras_loss.call(tf.constant(raw, tf.float32), tf.constant(logits))
        )
        shape = values.shape
        if shape.rank is None or shape.rank < 1 or shape[0] != n:
            raise InputError(
                f"The loss {name} gives a result of shape {shape} for {n} examples; its value is "
                "not one number per example; pass another `loss`."
            )
        together = loss.values(tf.constant(logits), tf.constant(labels)).numpy()
        alone = [
            loss.values(tf.constant(logits[i : i + 1]), tf.constant(labels[i : i + 1])).numpy()[0]
            for i in range(n)
        ]
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The loss {name} cannot be computed from {loss.outputs} outputs and labels of "
            f"{loss.label_width} numbers: {first_line(error)}; pass another `loss`."
        ) from error
    if not _close(together, np.asarray(alone)):
        raise InputError(
            f"The loss {name} of an example depends on the rest of its batch, so it has no "
            "gradient of its own; pass another `loss`."
        )


def check_per_position(loss: Loss, name: str) -> None:
    """Checks that a sequence's loss is made of values of its positions, each independent.

    Args:
        loss: the loss to try.
        name: its name, for messages.

    Raises:
        InputError: it is not, or the loss cannot be computed from positions.
    """
    logits, labels = _trial(loss, 4)
    expected = loss.values(tf.constant(logits), tf.constant(labels)).numpy().reshape(2, 2)
    raw = labels.reshape(2, 2) if loss.label_is_integer else labels.reshape(2, 2, -1)
    output = loss.model_output(tf.constant(logits.reshape(2, 2, -1)))
    try:
        values = np.asarray(loss.keras_loss.call(tf.constant(raw, tf.float32), output))
    except Exception as error:
        raise InputError(
            f"The loss {name} cannot be computed from positions: {first_line(error)}; pass another "
            "`loss`."
        ) from error
    if values.shape != expected.shape or not _close(values, expected):
        raise InputError(
            f"The loss {name} does not give each position of a sequence a value of its own, so "
            "that no position has a gradient of its own; pass another `loss`."
        )


def _trial(loss: Loss, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes random logits `[n, C]` and valid labels `[n, label_width]`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, loss.outputs)).astype(np.float32)
    hot = np.eye(loss.outputs, dtype=np.float32)[np.arange(n) % loss.outputs]
    labels = (np.arange(n) % loss.outputs)[:, None] if loss.label_is_integer else hot
    if loss.label_rule in (LabelRule.FRACTIONS, LabelRule.SIGNS) and loss.outputs == 1:
        labels = (np.arange(n) > 0).astype(np.float32)[:, None]
    elif loss.label_rule is LabelRule.FINITE:
        labels = rng.normal(size=(n, loss.outputs)).astype(np.float32)
    return logits, labels


def _close(values: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(
        values, expected, rtol=_RELATIVE_TOLERANCE, atol=_ABSOLUTE_TOLERANCE, equal_nan=True
    )
