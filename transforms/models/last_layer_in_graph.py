"""The last dense layer of a model: what computes its input, and what follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.models.inputs import (
    InputSpec,
    choose_output,
    graph_of,
    input_names,
    inputs_of,
    output_names,
)


@dataclass(frozen=True)
class Head:
    """A loaded checkpoint: the trunk that computes the last dense layer's input, and that layer."""

    layer: str
    trunk: Callable[..., Any]
    """From a list of the inputs, and `training`, to the layer's input `[n, D]`, or `[n, …, D]` where it works on positions."""
    inputs: tuple[InputSpec, ...]
    """What the model takes, in its order."""
    output_names: tuple[str, ...]
    """All outputs of the model."""
    output: int
    """Which of them the layer computes."""
    kernel: Any
    bias: Any | None
    outputs: int
    units: int
    activation: str
    detached: bool
    positions: tuple[int, ...] = ()
    """Shape of the positions of an example, at each of which the layer is applied; () where it is applied once."""

    def logits(self, activations: Any) -> Any:
        """Computes the logits `[n, C]` of activations `[n, D]`, float32 whatever the layer's
        precision.
        """
        logits = tf.matmul(activations, tf.cast(tf.convert_to_tensor(self.kernel), tf.float32))
        return (
            logits
            if self.bias is None
            else logits + tf.cast(tf.convert_to_tensor(self.bias), tf.float32)
        )


# They hand their input on at inference, and the tensor itself (with the logits that Keras keeps on
# it) in training too.
_SAME_TENSOR = ("Identity", "ActivityRegularization")
# They hand their input's values on at inference.
_SAME_VALUES = (
    "Dropout",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "Reshape",
    "Flatten",
    "Squeeze",
    "ExpandDims",
    "Cast",
)


class InCode(Exception):
    """The end of the model is not in a graph of layers, but in the code of a subclassed model or
    layer.
    """


def find_head(
    model: Any,
    layer: str | None,
    output_name: str | None,
    include_bias: bool,
    per_token: bool,
    path: str,
) -> Head:
    """Walks back from a model's output to its last dense layer.

    Args:
        model: a loaded checkpoint.
        layer: what `layer` names.
        output_name: what `output_name` names.
        include_bias: whether the layer must have a bias.
        per_token: whether the layer must work on positions, instead of one vector per example.
        path: the checkpoint, for messages.

    Raises:
        InputError: something stands in the way; it is named.
        InCode: there is no graph to walk.
    """
    graph = graph_of(model)
    if graph is None:
        raise InCode
    inputs, names = inputs_of(model, path), output_names(graph)
    chosen = choose_output(names, output_name, path)
    output = graph.outputs[chosen]
    if len(names) > 1:
        # What only other outputs need is no concern of this one's.
        graph = keras.Model(graph.inputs, output)
    # Models that the walk is inside of, each with its call in the one around it.
    frames: list[tuple[Any, Any]] = [(graph, None)]
    tensor = output
    activation, activation_shape = "linear", None
    detached, anything_after = False, False
    while True:
        inside, call = frames[-1]
        if call is not None and (position := _position(tensor, inside.inputs)) is not None:
            frames.pop()
            tensor = _given(call, inside)[position]
            continue
        operation, node_index, tensor_index = tensor._keras_history
        node = operation._inbound_nodes[node_index]
        inner = graph_of(operation)
        if inner is not None:
            frames.append((inner, node))
            tensor = inner.outputs[tensor_index]
            continue
        dense = _dense_of(operation)
        own = activation_of(dense or operation)
        if dense is not None:
            break
        if own is None and not _is_any(operation, (*_SAME_TENSOR, *_SAME_VALUES)):
            if isinstance(operation, keras.Layer) and any(
                map(_is_dense, operation._flatten_layers(include_self=False))
            ):
                raise InCode
            raise _in_the_way(operation, path, model)
        if per_token and not getattr(operation, "supports_masking", False):
            raise InputError(
                f"{path}: {named(operation)} stands after the last dense layer and takes the mask "
                "away, if there is one; with `per_token` "
                "expected layers that hand it on, such as Activation, Softmax or Dropout."
            )
        if own in ("softmax", "sigmoid"):
            if activation != "linear":
                raise InputError(
                    f"{path}: {named(operation)} is a second activation after the last dense "
                    "layer; one softmax or sigmoid is supported."
                )
            if own == "softmax" and not _over_last_axis(operation, tensor):
                raise InputError(
                    f"{path}: {named(operation)} has axis={operation.axis}, expected a softmax "
                    "over the last axis."
                )
            activation, activation_shape, detached = own, tensor.shape, anything_after
            detached = detached or keras.backend.standardize_dtype(tensor.dtype) != "float32"
        elif own is None and not _is_any(operation, _SAME_TENSOR):
            anything_after = True
        tensor = node.input_tensors[0]

    found = named(dense)
    check_dense(dense, include_bias, path)
    if own is not None and own != "linear":
        if activation != "linear":
            raise InputError(
                f"{path}: {found} has the activation {own}, and a {activation} follows; one of "
                "them is supported."
            )
        activation, activation_shape = own, tensor.shape
        detached = anything_after or keras.backend.standardize_dtype(tensor.dtype) != "float32"
    if layer is not None and layer != dense.name:
        names = [one.name for one in _layers(model) if isinstance(one, keras.layers.Dense)]
        raise InputError(
            f"`layer={layer}` is not the last dense layer of {path}, which is {found}; its dense "
            f"layers are {', '.join(names)}."
        )
    hidden = node.input_tensors[0]
    positions = tuple(hidden.shape[1:-1])
    if positions and not per_token:
        raise InputError(
            f"{path}: {found} works on each position of a tensor of shape {_shape(hidden)}: its "
            "gradient is a sum of outer products over "
            "the positions; expected one vector per example, or `per_token`, which makes a record "
            "of each position."
        )
    if per_token and not positions:
        raise InputError(
            f"{path}: {found} works on one vector per example, shape {_shape(hidden)}; leave "
            "`per_token` out."
        )
    if None in positions:
        raise InputError(
            f"{path}: {found} works on a free number of positions, shape {_shape(hidden)}; "
            "expected a fixed input shape."
        )
    calls = _calls(graph).get(id(operation), 0)
    if calls > 1:
        raise InputError(
            f"{path}: {found} is called {calls} times, so that its gradient is a sum over the "
            "calls; expected one call."
        )
    outputs = int(dense.units)
    if activation == "softmax" and tuple(activation_shape or ())[1:] != (*positions, outputs):
        raise InputError(
            f"{path}: the softmax is over groups of outputs, shape "
            f"{_shape_text(activation_shape)}; expected all {outputs}."
        )
    expected = (None, *positions, outputs)
    if tuple(output.shape) not in [
        expected,
        *([(None,)] if outputs == 1 and not positions else []),
    ]:
        raise InputError(
            f"{path}: the output of {found} is reshaped to {_shape(output)} per batch, expected "
            f"{_shape_text(expected)}: a loss would take it for something else."
        )
    return Head(
        layer=dense.name,
        trunk=_trunk(hidden, frames),
        inputs=inputs.specs,
        output_names=tuple(names),
        output=chosen,
        kernel=dense.kernel,
        bias=dense.bias if dense.use_bias else None,
        outputs=outputs,
        units=int(dense.kernel.shape[0]),
        activation=activation,
        detached=detached,
        positions=positions,
    )


def check_dense(dense: Any, include_bias: bool, path: str) -> None:
    """Makes sure that a dense layer's gradient is an outer product, and its activation one that a
    loss can be folded into.

    Raises:
        InputError: it is not.
    """
    found = named(dense)
    if activation_of(dense) is None:
        raise InputError(
            f"{path}: the last dense {found} has the activation {_activation_name(dense)}, "
            "expected linear, softmax or sigmoid: any "
            "other makes the loss gradient at the logits another one."
        )
    if dense.lora_enabled or dense.quantization_mode is not None:
        kind = "LoRA" if dense.lora_enabled else f"{dense.quantization_mode} quantisation"
        raise InputError(
            f"{path}: {found} has {kind}, expected a plain kernel; save the model without it."
        )
    if include_bias and not dense.use_bias:
        raise InputError(
            f"{path}: {found} has no bias (use_bias=False); pass `include_bias=false`."
        )


def _is_dense(operation: Any) -> bool:
    return type(operation) is keras.layers.Dense


def _dense_of(operation: Any) -> Any | None:
    """Gives the dense layer that an operation is, or applies to each position; None for anything
    else.
    """
    layer = operation.layer if _is_any(operation, ("TimeDistributed",)) else operation
    return layer if _is_dense(layer) else None


def _given(call: Any, graph: Any) -> list[Any]:
    """Gives the tensors that a model was called with, in the order of its own inputs."""
    given = call.arguments
    # Not `call.input_tensors`, in which masks are too.
    first = given.args[0] if given.args else given.kwargs["inputs"]
    if isinstance(first, Mapping):
        # Keras flattens a dictionary by its keys, whatever the order of the inputs that it matches
        # by name.
        return [first[name] for name in input_names(graph)]
    return list(keras.tree.flatten(first))


def _position(tensor: Any, tensors: Sequence[Any]) -> int | None:
    """Finds a tensor among others by identity."""
    return next((i for i, other in enumerate(tensors) if other is tensor), None)


def _calls(graph: Any, counts: dict[int, int] | None = None) -> dict[int, int]:
    """Counts how often each operation is called in a graph and the models inside it, by the
    operation's id.
    """
    counts = {} if counts is None else counts
    for node in (node for nodes in graph._nodes_by_depth.values() for node in nodes):
        counts[id(node.operation)] = counts.get(id(node.operation), 0) + 1
        inner = graph_of(node.operation)
        if inner is not None:
            _calls(inner, counts)
    return counts


def _trunk(hidden: Any, frames: list[tuple[Any, Any]]) -> Any:
    """Makes the model from the outermost inputs to a tensor inside the innermost frame."""
    while len(frames) > 1:
        graph, call = frames[-1]
        frames = frames[:-1]
        position = _position(hidden, graph.inputs)
        if position is not None:
            hidden = _given(call, graph)[position]
        else:
            inner = keras.Model(graph.inputs, hidden, name=f"{graph.name}_up_to_last_dense")
            hidden = inner(_given(call, graph))
    return keras.Model(frames[0][0].inputs, hidden, name="up_to_last_dense")


def _is_any(operation: Any, names: Sequence[str]) -> bool:
    """Says whether an operation is one of Keras's own of these classes."""
    return type(operation).__name__ in names and type(operation).__module__.startswith("keras.")


def activation_of(operation: Any) -> str | None:
    """Gives linear, softmax or sigmoid for an operation (or a dense layer) that applies it, else
    None.
    """
    if _is_any(operation, ("Softmax", "Sigmoid")):
        return type(operation).__name__.lower()
    if type(operation) in (keras.layers.Activation, keras.layers.Dense):
        for name in ("linear", "softmax", "sigmoid"):
            if (
                operation.activation is getattr(keras.activations, name)
                or operation.activation is None
            ):
                return name
    return None


def _over_last_axis(operation: Any, tensor: Any) -> bool:
    """Says whether a softmax is over the last axis of the tensor it gives."""
    axis = getattr(operation, "axis", -1)
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    return axis in (-1, len(tensor.shape) - 1)


def _activation_name(dense: Any) -> str:
    return str(getattr(dense.activation, "__name__", dense.activation))


def _in_the_way(operation: Any, path: str, model: Any) -> InputError:
    """Says what was found where the last dense layer was looked for."""
    found = named(operation)
    if isinstance(operation, keras.layers.Dense):
        return InputError(
            f"{path}: {found} is a subclass of Dense, whose computation may differ; expected "
            "keras.layers.Dense itself."
        )
    if isinstance(operation, keras.layers.InputLayer):
        return InputError(
            f"{path}: no Dense layer stands between the input {operation.name} and the output; "
            "expected one at the end."
        )
    kernel = getattr(operation, "weights", None) and hasattr(operation, "kernel")
    if kernel or "Conv" in type(operation).__name__:
        return InputError(
            f"{path} ends in {found}, which is not a Dense layer; expected a Dense layer at the "
            "end."
        )
    names = [layer.name for layer in _layers(model) if isinstance(layer, keras.layers.Dense)]
    return InputError(
        f"{path}: {found} stands at the end, after any Dense layer "
        f"({', '.join(names) or 'there is none'}); expected a Dense layer "
        "followed by at most a softmax or sigmoid, dropout, reshapes and casts."
    )


def named(operation: Any) -> str:
    """Names a layer or operation in a message."""
    return f"layer {operation.name} ({type(operation).__name__})"


def _shape(tensor: Any) -> str:
    return _shape_text(tensor.shape)


def _shape_text(shape: Any) -> str:
    return str(tuple(shape or ()))


def _layers(layer: Any) -> Iterator[Any]:
    """Yields a layer and the layers inside it."""
    yield layer
    for child in getattr(layer, "layers", None) or getattr(layer, "_layers", None) or ():
        yield from _layers(child)
