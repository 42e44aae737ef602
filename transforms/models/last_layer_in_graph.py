"""The last dense layer of a Sequential or functional model, found in its graph of layers.

A walk from the output back to the input passes at most one softmax or sigmoid, and operations that
hand values on at inference; it enters models inside the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from transforms.core.errors import InputError
from transforms.models.inputs import choose_output, graph_of, input_names, inputs_of, output_names
from transforms.models.last_layer import (
    LastDenseLayer,
    LayerChoice,
    activation_of,
    check_dense,
    describe,
    is_dense,
    is_keras,
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


class EndsInCode(Exception):
    """The model's end is in the code of a subclassed model or layer, not in a graph of layers."""


def find_last_dense_layer(model: Any, choice: LayerChoice, path: str) -> LastDenseLayer:
    """Walks back from a model's output to its last dense layer.

    Args:
        model: a loaded checkpoint.
        choice: which layer to use.
        path: the checkpoint, for messages.

    Raises:
        InputError: another operation stands in the way, or the layer is not supported.
        EndsInCode: there is no graph to walk.
    """
    graph = graph_of(model)
    if graph is None:
        raise EndsInCode
    inputs, names = inputs_of(model, path), output_names(graph)
    output_index = choose_output(names, choice.output_name, path)
    output = graph.outputs[output_index]
    if len(names) > 1:
        # Layers that only other outputs need may be of any kind.
        graph = keras.Model(graph.inputs, output)
    walk = _Walk(model, graph, output, choice.per_token, path)
    call = walk.to_last_dense_layer()
    dense = call.dense
    check_dense(dense, choice.include_bias, path)
    walk.add_activation_of_dense(dense)
    if choice.layer is not None and choice.layer != dense.name:
        raise InputError(
            f"`layer={choice.layer}` is not the last dense layer of {path}, which is "
            f"{describe(dense)}; its dense layers are {', '.join(_dense_names(model))}."
        )
    positions = tuple(call.hidden.shape[1:-1])
    _check_positions(call, positions, choice.per_token, path)
    _check_calls(call, graph, path)
    _check_output(call, walk, output, positions, path)
    return LastDenseLayer(
        layer=dense.name,
        trunk=_trunk(call.hidden, walk.frames),
        inputs=inputs.specs,
        output_names=tuple(names),
        output_index=output_index,
        kernel=dense.kernel,
        bias=dense.bias if dense.use_bias else None,
        outputs=int(dense.units),
        units=int(dense.kernel.shape[0]),
        activation=walk.activation,
        detached=walk.detached,
        positions=positions,
    )


@dataclass(frozen=True)
class _DenseCall:
    """The call of the last dense layer."""

    dense: Any
    operation: Any
    """The layer, or the TimeDistributed layer that applies it to each position."""
    hidden: Any
    """The tensor that it is called with."""


class _Walk:
    """A walk through a model's graph, from its output back to its last dense layer.

    Attributes:
        frames: models that the walk is inside of, outermost first, each with its call in the graph
            around it.
        activation: the activation met so far, `linear` if none.
        activation_shape: the shape of its result.
        detached: whether Keras's losses find the activation's result only, and not its logits.
    """

    def __init__(self, model: Any, graph: Any, output: Any, per_token: bool, path: str) -> None:
        self.frames: list[tuple[Any, Any]] = [(graph, None)]
        self.activation = "linear"
        self.activation_shape: Any = None
        self.detached = False
        self._model = model
        self._tensor = output
        self._per_token = per_token
        self._path = path
        self._other_tensor_follows = False

    def to_last_dense_layer(self) -> _DenseCall:
        """Walks to the call of the last dense layer."""
        while True:
            operation, node = self._next_operation()
            dense = _dense_of(operation)
            if dense is not None:
                return _DenseCall(dense, operation, node.input_tensors[0])
            self._pass(operation)
            self._tensor = node.input_tensors[0]

    def add_activation_of_dense(self, dense: Any) -> None:
        """Takes the activation of the dense layer itself into account."""
        activation = activation_of(dense)
        if activation is None or activation == "linear":
            return
        if self.activation != "linear":
            raise InputError(
                f"{self._path}: {describe(dense)} has the activation {activation}, and a "
                f"{self.activation} follows; one of them is supported."
            )
        self._set_activation(activation)

    def _next_operation(self) -> tuple[Any, Any]:
        """Enters and leaves models until an operation is reached that is no model.

        Returns:
            The operation and its node.
        """
        while True:
            graph, call = self.frames[-1]
            index = None if call is None else _index_of(self._tensor, graph.inputs)
            if index is not None:
                self.frames.pop()
                self._tensor = _arguments(call, graph)[index]
                continue
            operation, node_index, tensor_index = self._tensor._keras_history
            node = operation._inbound_nodes[node_index]
            inner = graph_of(operation)
            if inner is None:
                return operation, node
            self.frames.append((inner, node))
            self._tensor = inner.outputs[tensor_index]

    def _pass(self, operation: Any) -> None:
        """Takes an operation after the last dense layer into account, or refuses it."""
        path, activation = self._path, activation_of(operation)
        if activation is None and not is_keras(operation, (*_SAME_TENSOR, *_SAME_VALUES)):
            if isinstance(operation, keras.Layer) and any(
                map(is_dense, operation._flatten_layers(include_self=False))
            ):
                raise EndsInCode
            raise _obstacle(operation, path, self._model)
        if self._per_token and not getattr(operation, "supports_masking", False):
            raise InputError(
                f"{path}: {describe(operation)} stands after the last dense layer and takes the "
                "mask away, if there is one; with `per_token` expected layers that hand it on, "
                "such as Activation, Softmax or Dropout."
            )
        if activation in ("softmax", "sigmoid"):
            if self.activation != "linear":
                raise InputError(
                    f"{path}: {describe(operation)} is a second activation after the last dense "
                    "layer; one softmax or sigmoid is supported."
                )
            if activation == "softmax" and not _over_last_axis(operation, self._tensor):
                raise InputError(
                    f"{path}: {describe(operation)} has axis={operation.axis}, expected a softmax "
                    "over the last axis."
                )
            self._set_activation(str(activation))
        elif activation is None and not is_keras(operation, _SAME_TENSOR):
            self._other_tensor_follows = True

    def _set_activation(self, activation: str) -> None:
        self.activation, self.activation_shape = activation, self._tensor.shape
        dtype = keras.backend.standardize_dtype(self._tensor.dtype)
        self.detached = self._other_tensor_follows or dtype != "float32"


def _check_positions(
    call: _DenseCall, positions: tuple[int | None, ...], per_token: bool, path: str
) -> None:
    """Raises InputError unless the layer works on positions exactly where `per_token` says so."""
    layer, shape = describe(call.dense), _shape(call.hidden.shape)
    if positions and not per_token:
        raise InputError(
            f"{path}: {layer} works on each position of a tensor of shape {shape}: its gradient is "
            "a sum of outer products over the positions; expected one vector per example, or "
            "`per_token`, which makes a record of each position."
        )
    if per_token and not positions:
        raise InputError(
            f"{path}: {layer} works on one vector per example, shape {shape}; leave `per_token` "
            "out."
        )
    if None in positions:
        raise InputError(
            f"{path}: {layer} works on a free number of positions, shape {shape}; expected a fixed "
            "input shape."
        )


def _check_calls(call: _DenseCall, graph: Any, path: str) -> None:
    """Raises InputError if the layer is called several times."""
    calls = _count_calls(graph).get(id(call.operation), 0)
    if calls > 1:
        raise InputError(
            f"{path}: {describe(call.dense)} is called {calls} times, so that its gradient is a "
            "sum over the calls; expected one call."
        )


def _check_output(
    call: _DenseCall, walk: _Walk, output: Any, positions: tuple[int | None, ...], path: str
) -> None:
    """Raises InputError unless the output has the shape of the logits."""
    outputs = int(call.dense.units)
    softmax_shape = tuple(walk.activation_shape or ())[1:]
    if walk.activation == "softmax" and softmax_shape != (*positions, outputs):
        raise InputError(
            f"{path}: the softmax is over groups of outputs, shape "
            f"{_shape(walk.activation_shape)}; expected all {outputs}."
        )
    expected = (None, *positions, outputs)
    squeezed = [(None,)] if outputs == 1 and not positions else []
    if tuple(output.shape) not in [expected, *squeezed]:
        raise InputError(
            f"{path}: the output of {describe(call.dense)} is reshaped to {_shape(output.shape)} "
            f"per batch, expected {_shape(expected)}: a loss would take it for something else."
        )


def _dense_of(operation: Any) -> Any | None:
    """Returns the dense layer that an operation is, or applies to each position; None if none."""
    layer = operation.layer if is_keras(operation, ("TimeDistributed",)) else operation
    return layer if is_dense(layer) else None


def _arguments(call: Any, graph: Any) -> list[Any]:
    """Returns the tensors that a model is called with, in the order of its own inputs."""
    # Not `call.input_tensors`, which holds masks too.
    arguments = call.arguments
    first = arguments.args[0] if arguments.args else arguments.kwargs["inputs"]
    if isinstance(first, Mapping):
        # Keras flattens a dictionary by its keys, whatever the order of the inputs that it matches
        # by name.
        return [first[name] for name in input_names(graph)]
    return list(keras.tree.flatten(first))


def _index_of(tensor: Any, tensors: Sequence[Any]) -> int | None:
    """Finds a tensor among others by identity."""
    return next((i for i, other in enumerate(tensors) if other is tensor), None)


def _count_calls(graph: Any, counts: dict[int, int] | None = None) -> dict[int, int]:
    """Counts the calls of each operation, by its id, in a graph and the models inside it."""
    counts = {} if counts is None else counts
    for node in (node for nodes in graph._nodes_by_depth.values() for node in nodes):
        counts[id(node.operation)] = counts.get(id(node.operation), 0) + 1
        inner = graph_of(node.operation)
        if inner is not None:
            _count_calls(inner, counts)
    return counts


def _trunk(hidden: Any, frames: list[tuple[Any, Any]]) -> Any:
    """Makes the model from the outermost inputs to a tensor inside the innermost frame."""
    while len(frames) > 1:
        graph, call = frames[-1]
        frames = frames[:-1]
        index = _index_of(hidden, graph.inputs)
        if index is not None:
            hidden = _arguments(call, graph)[index]
        else:
            inner = keras.Model(graph.inputs, hidden, name=f"{graph.name}_up_to_last_dense")
            hidden = inner(_arguments(call, graph))
    return keras.Model(frames[0][0].inputs, hidden, name="up_to_last_dense")


def _over_last_axis(operation: Any, tensor: Any) -> bool:
    """Returns whether a softmax is over the last axis of its result."""
    axis = getattr(operation, "axis", -1)
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    return axis in (-1, len(tensor.shape) - 1)


def _obstacle(operation: Any, path: str, model: Any) -> InputError:
    """Makes the error for an operation that stands where the last dense layer is expected."""
    name = describe(operation)
    if isinstance(operation, keras.layers.Dense):
        return InputError(
            f"{path}: {name} is a subclass of Dense, whose computation may differ; expected "
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
            f"{path} ends in {name}, which is not a Dense layer; expected a Dense layer at the end."
        )
    return InputError(
        f"{path}: {name} stands at the end, after any Dense layer "
        f"({', '.join(_dense_names(model)) or 'there is none'}); expected a Dense layer followed "
        "by at most a softmax or sigmoid, dropout, reshapes and casts."
    )


def _shape(shape: Any) -> str:
    return str(tuple(shape or ()))


def _dense_names(model: Any) -> list[str]:
    """Returns the names of a model's dense layers, those of models and layers inside it too."""
    return [layer.name for layer in _layers(model) if isinstance(layer, keras.layers.Dense)]


def _layers(layer: Any) -> Iterator[Any]:
    """Yields a layer and the layers inside it."""
    yield layer
    for child in getattr(layer, "layers", None) or getattr(layer, "_layers", None) or ():
        yield from _layers(child)
