"""Loaded checkpoints of a Keras model: logits and activations of their last dense layer.

`load` builds the models from local files, checks that every variable got its value from the file,
and that the checkpoints are of one training run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from transforms.core.errors import InputError
from transforms.models import last_layer_in_code, last_layer_in_graph
from transforms.models.architectures import BuiltModel, import_modules, load_model
from transforms.models.checkpoint_files import KINDS
from transforms.models.inputs import ModelInput
from transforms.models.last_layer import LastDenseLayer, LayerChoice
from transforms.models.losses.compiled_losses import of_output, resolve
from transforms.models.losses.loss import Loss


@dataclass(frozen=True)
class ModelSpec:
    """The settings from which a worker loads the checkpoints; it pickles."""

    checkpoints: tuple[str, ...]
    """Local paths in final order: .keras, .weights.h5, or prefixes of TensorFlow checkpoints."""
    model: str | None = None
    """The architecture for weights files: a .keras file, a .json file, or `module:function` that
    returns a Keras model."""
    imports: tuple[str, ...] = ()
    """Modules that register custom code, imported before anything is loaded."""
    layer: str | None = None
    """The name of the last dense layer; found if None."""
    loss: str | None = None
    """The loss, by name; the compiled loss if None."""
    include_bias: bool = True
    """Whether gradients include those of the layer's bias."""
    output_name: str | None = None
    """The output to explain, of a model with several."""
    per_token: bool = False
    """Whether the last dense layer works on positions, each of which is a record of its own."""


def load(spec: ModelSpec) -> Checkpoints:
    """Loads all checkpoints.

    Raises:
        InputError: a file cannot be read, custom code is missing, a variable is not in a file, the
            model is not supported, or the checkpoints do not fit each other.
    """
    if not spec.checkpoints:
        raise InputError(f"No checkpoint given; `checkpoints` must match {KINDS}.")
    import_modules(spec.imports)
    seen: list[Any] = []
    layers: list[LastDenseLayer] = []
    losses: list[Loss] = []
    # From the last one, whose compiled loss serves for earlier checkpoints that were saved without
    # compiling.
    compiled: BuiltModel | None = None
    for path in reversed(spec.checkpoints):
        built = load_model(path, spec.model, seen)
        compiled = built if built.loss is not None or compiled is None else compiled
        layer = _find_last_dense_layer(built.model, spec, path)
        layers.append(layer)
        losses.append(_resolve_loss(compiled, layer, spec, path))
    last = spec.checkpoints[-1]
    for path, layer, loss in zip(reversed(spec.checkpoints), layers, losses, strict=True):
        _check_agreement((path, layer, loss), (last, layers[0], losses[0]), spec.loss is None)
    layers.reverse()
    return Checkpoints(layers, losses[0], spec.include_bias)


def _find_last_dense_layer(model: Any, spec: ModelSpec, path: str) -> LastDenseLayer:
    """Finds the last dense layer in the model's graph, or else by running the model."""
    choice = LayerChoice(spec.layer, spec.output_name, spec.include_bias, spec.per_token)
    try:
        return last_layer_in_graph.find_last_dense_layer(model, choice, path)
    except last_layer_in_graph.EndsInCode:
        if spec.per_token:
            raise InputError(
                f"{path}: the end of {type(model).__name__} is in its code; `per_token` needs a "
                "Sequential or functional model that ends in layers."
            ) from None
        return last_layer_in_code.find_last_dense_layer(model, choice, path)


def _resolve_loss(compiled: BuiltModel, layer: LastDenseLayer, spec: ModelSpec, path: str) -> Loss:
    """Resolves the loss over the logits of a checkpoint's last dense layer."""
    try:
        loss, weight = of_output(
            compiled.loss, compiled.loss_weights, layer.output_names, layer.output_index
        )
        return resolve(
            loss,
            spec.loss,
            layer.activation,
            layer.outputs,
            weight,
            layer.detached,
            spec.per_token,
        )
    except InputError as error:
        raise InputError(f"Checkpoint {path}: {error}") from error


def _check_agreement(
    checkpoint: tuple[str, LastDenseLayer, Loss],
    last: tuple[str, LastDenseLayer, Loss],
    loss_is_compiled: bool,
) -> None:
    """Raises InputError unless a checkpoint agrees with the last one.

    Args:
        checkpoint: its path, last dense layer and loss.
        last: those of the last checkpoint.
        loss_is_compiled: whether the losses are the compiled ones.
    """
    path, layer, loss = checkpoint
    last_path, last_layer, last_loss = last
    for what, value, expected in (
        ("inputs", _comparable(layer.inputs), _comparable(last_layer.inputs)),
        ("last dense layer", base_name(layer.layer), base_name(last_layer.layer)),
        ("number of outputs", layer.outputs, last_layer.outputs),
        ("number of units before the last dense layer", layer.units, last_layer.units),
        ("positions", layer.positions, last_layer.positions),
        ("loss", loss.description, last_loss.description),
    ):
        if value != expected:
            raise InputError(
                f"Checkpoints differ in their {what}: {value} in {path}, {expected} in "
                f"{last_path}; give checkpoints of one training run"
                + (", or pass `loss`." if what == "loss" and loss_is_compiled else ".")
            )


class Checkpoints:
    """Loaded checkpoints, which compute logits and activations.

    Several threads may call them at once.

    Attributes:
        layer: name of the last dense layer.
        loss: the loss over its logits.
        outputs: C, the number of logits.
        units: D, the number of activations, without the bias's 1.
        include_bias: whether gradients include those of the bias.
        size: T, the number of checkpoints.
        inputs: the model's inputs, in its order.
        output: name of the output that is explained; None where the model has no other.
        positions: P, the number of an example's positions, each with logits and activations of its
            own; None where the layer works on one vector per example.
    """

    def __init__(self, layers: Sequence[LastDenseLayer], loss: Loss, include_bias: bool) -> None:
        last = layers[-1]
        self._layers = tuple(layers)
        self.layer = last.layer
        self.loss = loss
        self.outputs = last.outputs
        self.units = last.units
        self.include_bias = include_bias
        self.size = len(layers)
        self.inputs = last.inputs
        several = len(last.output_names) > 1
        self.output = last.output_names[last.output_index] if several else None
        self.positions = math.prod(last.positions) if last.positions else None

    def logits_and_activations(
        self, t: int, inputs: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Runs checkpoint t in inference mode: the trunk as it is, the last layer in float32.

        Usable inside a tf.function.

        Args:
            t: 0..T−1.
            inputs: a tensor `[n, …]`; with several inputs a sequence in the order of `inputs`, or a
                mapping by their names.

        Returns:
            Logits `[n, C]` and activations `[n, D]` (the layer's input), both float32, and None.
            Of a layer that works on P positions `[n·P, C]`, `[n·P, D]` and Keras's mask `[n·P]`,
            true where a position counts; None where there is no mask.
        """
        layer = self._layers[t]
        if isinstance(inputs, Mapping):
            tensors = [inputs[spec.name] for spec in self.inputs]
        else:
            tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        # Batch normalisation uses the checkpoint's own statistics, dropout is off.
        hidden = layer.trunk(tensors, training=False)
        # Keras hands masks on as attributes of tensors, which a cast takes away.
        mask = getattr(hidden, "_keras_mask", None) if layer.positions else None
        activations = tf.reshape(tf.cast(hidden, tf.float32), [-1, self.units])
        if mask is not None:
            if mask.shape.rank != 1 + len(layer.positions):
                raise InputError(
                    f"the mask of the last dense layer has the shape {mask.shape}, expected "
                    f"(None, {layer.positions})"
                )
            mask = tf.reshape(mask, [-1])
        return layer.logits(activations), activations, mask


def base_name(name: str) -> str:
    """Removes the number that Keras adds to the name of an unnamed layer."""
    return re.sub(r"_\d+$", "", name)


def _comparable(inputs: Sequence[ModelInput]) -> list[Any]:
    """Returns the properties of inputs that must agree between checkpoints.

    Keras numbers the names of unnamed inputs anew in every process.
    """
    return [
        (base_name(spec.name) if len(inputs) > 1 else "", spec.shape, spec.dtype) for spec in inputs
    ]
