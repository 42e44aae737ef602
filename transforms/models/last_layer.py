"""The last dense layer of a loaded checkpoint: its parameters, and the trunk before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.models.inputs import ModelInput


@dataclass(frozen=True)
class LayerChoice:
    """Settings that say which dense layer to use, and how it may look."""

    layer: str | None
    """The name that the layer must have; any if None."""
    output_name: str | None
    """The output to explain, of a model with several."""
    include_bias: bool
    """Whether the layer must have a bias."""
    per_token: bool
    """Whether the layer must work on positions, instead of one vector per example."""


@dataclass(frozen=True)
class LastDenseLayer:
    """The last dense layer of a checkpoint, and the trunk that computes its input."""

    layer: str
    """The layer's name."""
    trunk: Callable[..., Any]
    """Takes a list of the inputs, and `training`; gives the layer's input `[n, D]`, or `[n, …, D]`
    where the layer works on positions."""
    inputs: tuple[ModelInput, ...]
    """The model's inputs, in its order."""
    output_names: tuple[str, ...]
    """All outputs of the model."""
    output_index: int
    """The output that the layer computes."""
    kernel: Any
    """Variable `[D, C]`."""
    bias: Any | None
    """Variable `[C]`; None where the layer has none."""
    outputs: int
    """C, the number of logits."""
    units: int
    """D, the length of the layer's input."""
    activation: str
    """Activation that follows the logits: `linear`, `softmax` or `sigmoid`."""
    detached: bool
    """Whether Keras's losses find the output of the activation only, and not its logits."""
    positions: tuple[int, ...] = ()
    """Shape of an example's positions, at each of which the layer is applied; () where it is
    applied once."""

    def logits(self, activations: Any) -> Any:
        """Computes the logits in float32, whatever the layer's precision.

        Args:
            activations: the layer's inputs `[n, D]` float32.

        Returns:
            `[n, C]` float32.
        """
        logits = tf.matmul(activations, tf.cast(tf.convert_to_tensor(self.kernel), tf.float32))
        if self.bias is None:
            return logits
        return logits + tf.cast(tf.convert_to_tensor(self.bias), tf.float32)


def check_dense(dense: Any, include_bias: bool, path: str) -> None:
    """Checks that a dense layer's gradient is an outer product that a loss can be folded into.

    Args:
        dense: the last dense layer.
        include_bias: whether it must have a bias.
        path: the checkpoint, for messages.

    Raises:
        InputError: another activation than linear, softmax or sigmoid, a kernel that is not plain,
            or no bias.
    """
    if activation_of(dense) is None:
        activation = getattr(dense.activation, "__name__", dense.activation)
        raise InputError(
            f"{path}: the last dense {describe(dense)} has the activation {activation}, expected "
            "linear, softmax or sigmoid: any other makes the loss gradient at the logits another "
            "one."
        )
    if dense.lora_enabled or dense.quantization_mode is not None:
        kind = "LoRA" if dense.lora_enabled else f"{dense.quantization_mode} quantisation"
        raise InputError(
            f"{path}: {describe(dense)} has {kind}, expected a plain kernel; save the model "
            "without it."
        )
    if include_bias and not dense.use_bias:
        raise InputError(
            f"{path}: {describe(dense)} has no bias (use_bias=False); pass `include_bias=false`."
        )


def activation_of(operation: Any) -> str | None:
    """Returns the activation that an operation or a dense layer applies.

    Returns:
        `linear`, `softmax` or `sigmoid`; None for any other operation.
    """
    if is_keras(operation, ("Softmax", "Sigmoid")):
        return type(operation).__name__.lower()
    if type(operation) in (keras.layers.Activation, keras.layers.Dense):
        for name in ("linear", "softmax", "sigmoid"):
            if (
                operation.activation is getattr(keras.activations, name)
                or operation.activation is None
            ):
                return name
    return None


def is_dense(operation: Any) -> bool:
    """Returns whether an operation is Keras's dense layer itself, not a subclass."""
    return type(operation) is keras.layers.Dense


def is_keras(operation: Any, names: Sequence[str]) -> bool:
    """Returns whether an operation is an instance of one of Keras's own classes of these names."""
    return type(operation).__name__ in names and type(operation).__module__.startswith("keras.")


def describe(operation: Any) -> str:
    """Names a layer or operation in a message."""
    return f"layer {operation.name} ({type(operation).__name__})"
