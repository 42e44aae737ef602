"""Checkpoints of a Keras model, loaded: the logits and activations of their last dense layer.

Everything here reads local files. `load` builds the models and makes sure that every variable got
its value from the file.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from transforms.core.errors import InputError, first_line
from transforms.models import last_layer_in_code, last_layer_in_graph
from transforms.models.checkpoint_files import KINDS, files_of, read_config
from transforms.models.inputs import InputSpec, graph_of
from transforms.models.last_layer_in_graph import Head
from transforms.models.losses.compiled_losses import of_output, resolve
from transforms.models.losses.loss import Loss
from transforms.models.weights import (
    bind,
    bind_tensorflow,
    check_vocabularies,
    load_error,
    load_weights,
)


@dataclass(frozen=True)
class ModelSpec:
    """Everything that a worker needs to load the checkpoints; it pickles."""

    checkpoints: tuple[str, ...]
    """Local paths in final order: .keras, .weights.h5, or prefixes of TensorFlow checkpoints."""
    model: str | None = None
    """The architecture for weights files: a .keras file, a .json file, or `module:function` returning a Keras model."""
    imports: tuple[str, ...] = ()
    """Modules that register custom code, imported before anything is loaded."""
    layer: str | None = None
    """The name of the last dense layer; found if None."""
    loss: str | None = None
    """What `loss` names; the compiled loss if None."""
    include_bias: bool = True
    """Whether gradients include those of the layer's bias."""
    output_name: str | None = None
    """The output to explain, of a model with several."""
    per_token: bool = False
    """Whether the last dense layer works on positions, each of which is a record of its own."""


def import_modules(modules: Sequence[str]) -> None:
    """Imports the modules that register custom code.

    Raises:
        InputError: a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise InputError(
                f"`imports={module}` cannot be imported: {type(error).__name__}: "
                f"{first_line(error)}; install it where the program runs."
            ) from error


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
    heads, losses = [], []
    # From the last one, whose compiled loss stands in for those of checkpoints that were saved
    # without compiling.
    compiled: tuple[Any, Any] | None = None
    for path in reversed(spec.checkpoints):
        model, own_compiled = _load_model(path, spec, seen)
        compiled = own_compiled if own_compiled[0] is not None or compiled is None else compiled
        head = _find_head(model, spec, path)
        try:
            own_loss, weight = of_output(*compiled, head.output_names, head.output)
            loss = resolve(
                own_loss,
                spec.loss,
                head.activation,
                head.outputs,
                weight,
                head.detached,
                spec.per_token,
            )
        except InputError as error:
            raise InputError(f"Checkpoint {path}: {error}") from error
        heads.append(head)
        losses.append(loss)
    last = spec.checkpoints[-1]
    for path, head, loss in zip(reversed(spec.checkpoints), heads, losses, strict=True):
        for what, found, wanted in (
            ("inputs", _comparable(head.inputs), _comparable(heads[0].inputs)),
            ("last dense layer", base_name(head.layer), base_name(heads[0].layer)),
            ("number of outputs", head.outputs, heads[0].outputs),
            ("number of units before the last dense layer", head.units, heads[0].units),
            ("positions", head.positions, heads[0].positions),
            ("loss", loss.description, losses[0].description),
        ):
            if found != wanted:
                raise InputError(
                    f"Checkpoints differ in their {what}: {found} in {path}, {wanted} in {last}; "
                    "give checkpoints of one training run"
                    + (", or pass `loss`." if what == "loss" and spec.loss is None else ".")
                )
    heads.reverse()
    return Checkpoints(heads, losses[0], spec.include_bias)


def _find_head(model: Any, spec: ModelSpec, path: str) -> Head:
    """Finds the last dense layer in the model's graph, or else in what its code does."""
    try:
        return last_layer_in_graph.find_head(
            model, spec.layer, spec.output_name, spec.include_bias, spec.per_token, path
        )
    except last_layer_in_graph.InCode:
        if spec.per_token:
            raise InputError(
                f"{path}: the end of {type(model).__name__} is in its code; `per_token` needs a "
                "Sequential or functional model that ends in layers."
            ) from None
        return last_layer_in_code.find_head(
            model, spec.layer, spec.output_name, spec.include_bias, path
        )


class Checkpoints:
    """The loaded checkpoints, ready to give logits and activations; several threads may call it at
    once.

    Attributes:
        layer: name of the last dense layer.
        loss: the loss over its logits.
        outputs: C, the number of logits.
        units: D, the number of activations, without the bias's 1.
        include_bias: whether gradients include those of the bias.
        size: T, the number of checkpoints.
        inputs: what the model takes, in its order.
        output: name of the output that is explained; None where the model has no other.
        positions: P, how many positions of an example the layer works on, each with logits and
            activations of its own; None where it works on one vector per example.
    """

    def __init__(self, heads: Sequence[Head], loss: Loss, include_bias: bool) -> None:
        self._heads = tuple(heads)
        self.layer = heads[-1].layer
        self.loss = loss
        self.outputs = heads[-1].outputs
        self.units = heads[-1].units
        self.include_bias = include_bias
        self.size = len(heads)
        self.inputs = heads[-1].inputs
        self.output = (
            heads[-1].output_names[heads[-1].output] if len(heads[-1].output_names) > 1 else None
        )
        self.positions = math.prod(heads[-1].positions) if heads[-1].positions else None

    def logits_and_activations(
        self, t: int, inputs: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Runs checkpoint t in inference mode up to its last dense layer, and that layer in
        float32.

        Args:
            t: 0..T−1.
            inputs: a tensor `[n, …]`; with several inputs a sequence in the order of `inputs`, or a
                mapping by their names.

        Returns:
            logits `[n, C]` and activations `[n, D]` (the layer's input), both float32; of a layer
                that works on P positions `[n·P, C]` and
            `[n·P, D]`, and with them Keras's mask `[n·P]`, true where a position counts; None where
                there is no mask. Usable inside a
            tf.function.
        """
        head = self._heads[t]
        if isinstance(inputs, Mapping):
            tensors = [inputs[spec.name] for spec in self.inputs]
        else:
            tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        # Batch normalisation uses the checkpoint's own statistics, dropout is off.
        hidden = head.trunk(tensors, training=False)
        # Keras hands masks on as attributes of tensors, which a cast takes away.
        mask = getattr(hidden, "_keras_mask", None) if head.positions else None
        activations = tf.reshape(tf.cast(hidden, tf.float32), [-1, self.units])
        if mask is not None:
            if mask.shape.rank != 1 + len(head.positions):
                raise InputError(
                    f"the mask of the last dense layer has the shape {mask.shape}, expected (None, "
                    f"{head.positions})"
                )
            mask = tf.reshape(mask, [-1])
        return head.logits(activations), activations, mask


def _comparable(inputs: Sequence[InputSpec]) -> list[Any]:
    """Gives what must agree between checkpoints; Keras numbers the names of unnamed inputs anew in
    every process.
    """
    return [
        (base_name(spec.name) if len(inputs) > 1 else "", spec.shape, spec.dtype) for spec in inputs
    ]


def base_name(name: str) -> str:
    """Takes the number away that Keras adds to the name of an unnamed layer."""
    return re.sub(r"_\d+$", "", name)


def _load_model(path: str, spec: ModelSpec, seen: list[Any]) -> tuple[Any, tuple[Any, Any]]:
    """Loads one checkpoint into a model of its own; gives it with its compiled loss and loss
    weights.
    """
    files_of(path)
    if path.endswith(".keras"):
        compiled = _compiled(read_config(path))
        try:
            model = keras.saving.load_model(path, compile=False)
        except Exception as error:
            raise load_error(path, error) from error
        if graph_of(model) is None and model.weights:
            # Keras leaves layers alone that a subclassed model has not built by then.
            bind(model, path, lambda: load_weights(model, path))
        return model, compiled
    if not spec.model:
        raise InputError(
            f"Checkpoint {path} holds weights alone; pass `model` with the architecture: a .keras "
            "file, a .json file, or module:function."
        )
    model, compiled = _architecture(spec.model)
    if any(model is other for other in seen):
        raise InputError(
            f"`model={spec.model}` returned the same model twice, expected a new one from each "
            "call."
        )
    seen.append(model)
    if not model.built or not model.weights:
        raise InputError(
            f"`model={spec.model}` gives a model without variables; give it an input shape "
            "(keras.Input), or call it once."
        )
    if path.endswith(".weights.h5"):
        bind(model, path, lambda: load_weights(model, path))
    else:
        bind_tensorflow(model, path)
    check_vocabularies(model, path)
    return model, compiled


def _compiled(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Gives the compiled loss and the loss weights of a serialized model."""
    compiled = config.get("compile_config") or {}
    return compiled.get("loss"), compiled.get("loss_weights")


def _architecture(source: str) -> tuple[Any, tuple[Any, Any]]:
    """Makes a new model with arbitrary weights; gives it with its compiled loss and loss
    weights.
    """
    if source.endswith((".keras", ".json")):
        if not os.path.isfile(source):
            raise InputError(f"`model={source}` does not exist.")
        if source.endswith(".keras"):
            config = read_config(source)
        else:
            try:
                with open(source, encoding="utf-8") as stream:
                    config = json.load(stream)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"`model={source}` is not the JSON of a Keras model: {first_line(error)}."
                ) from error
        compiled = _compiled(config)
        try:
            # Without the compile_config, so that an unknown metric does not matter.
            model = keras.saving.deserialize_keras_object(
                {**config, "compile_config": None}, safe_mode=True
            )
        except Exception as error:
            raise load_error(source, error) from error
    else:
        module, colon, function = source.partition(":")
        if not colon:
            raise InputError(
                f"`model={source}` is not an architecture; expected a .keras file, a .json file, "
                "or module:function."
            )
        import_modules([module])
        build = getattr(importlib.import_module(module), function, None)
        if not callable(build):
            raise InputError(f"`model={source}`: module {module} has no function {function}.")
        try:
            model = build()
        except Exception as error:
            raise InputError(
                f"`model={source}` failed: {type(error).__name__}: {first_line(error)}."
            ) from error
        compiled = (None, None)
        if isinstance(model, keras.Model) and model.compiled:
            compiled = _compiled({"compile_config": model.get_compile_config()})
    if not isinstance(model, keras.Model):
        raise InputError(
            f"`model={source}` gives a {type(model).__name__}, expected a Keras model."
        )
    return model, compiled
