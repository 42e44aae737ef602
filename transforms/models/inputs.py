"""Inputs and outputs of a model, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from transforms.core.errors import InputError


@dataclass(frozen=True)
class ModelInput:
    """One input of the model."""

    name: str
    shape: tuple[int | None, ...]
    """Without the batch dimension."""
    dtype: str


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of a model in a fixed order, and the structure in which its `call` takes them."""

    specs: tuple[ModelInput, ...]
    _structure: Any

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Packs tensors, in the order of `specs`, into the structure of the model's `call`."""
        return keras.tree.pack_sequence_as(self._structure, list(tensors))


def graph_of(operation: Any) -> Any | None:
    """Returns the graph of a Sequential or functional model; None for anything else.

    Raises:
        InputError: a Sequential model has no input shape, and so no graph yet.
    """
    if isinstance(operation, keras.Sequential):
        graph = getattr(operation, "_functional", None)
        if graph is None:
            raise InputError(
                f"Model {operation.name} has no input shape; add a keras.Input, call it once "
                "before saving, or build it."
            )
    elif isinstance(operation, keras.Model) and isinstance(operation, keras.Function):
        graph = operation
    else:
        return None
    # A subclass that has its own way to compute does not follow the graph.
    return graph if type(operation).call.__module__.startswith("keras.") else None


def input_names(graph: Any) -> list[str]:
    """Names a graph's inputs by the keys of the dictionary that it takes, else by their tensors."""
    return _keys(graph._inputs_struct) or [tensor.name for tensor in graph.inputs]


def inputs_of(model: Any, path: str) -> ModelInputs:
    """Lists a model's inputs.

    A graph knows them. A model whose computation is code takes the inputs that its `input_spec`
    declares, else float32 numbers of the shapes that it was built with.

    Args:
        model: a loaded checkpoint.
        path: the checkpoint, for messages.

    Raises:
        InputError: the model has neither.
    """
    # A functional model's own graph knows its inputs even if `call` does not follow it.
    graph = graph_of(model) or (model if isinstance(model, keras.Function) else None)
    if graph is None:
        return _inputs_of_code(model, path)
    specs = [
        ModelInput(name, tuple(tensor.shape[1:]), keras.backend.standardize_dtype(tensor.dtype))
        for name, tensor in zip(input_names(graph), graph.inputs, strict=True)
    ]
    return ModelInputs(tuple(specs), graph._inputs_struct)


def _inputs_of_code(model: Any, path: str) -> ModelInputs:
    """Lists the inputs of a model without a graph."""
    structure = model.input_spec
    declared = keras.tree.flatten(structure) if structure is not None else []
    if declared and all(spec.shape is not None for spec in declared):
        shapes = [tuple(spec.shape) for spec in declared]
    else:
        # Not the model's own method, which may return anything.
        config = keras.Layer.get_build_config(model) or {}
        if "input_shape" not in config:
            raise InputError(
                f"{path} is a subclassed model ({type(model).__name__}) that does not declare the "
                "shapes of its inputs; set self.input_spec = "
                "keras.InputSpec(shape=(None, ...), dtype=...) in it, or call it once before "
                "saving."
            )
        structure, shapes = _shapes(config["input_shape"])
        if declared and len(declared) != len(shapes):
            raise InputError(
                f"{path}: input_spec declares {len(declared)} inputs, the model was built with "
                f"{len(shapes)}."
            )
    names = _keys(structure) or [f"input_{i + 1}" for i in range(len(shapes))]
    dtypes = [
        keras.backend.standardize_dtype(spec.dtype) if spec.dtype else "float32"
        for spec in declared
    ] or ["float32"] * len(shapes)
    specs = [
        ModelInput(name, shape[1:], dtype)
        for name, shape, dtype in zip(names, shapes, dtypes, strict=True)
    ]
    return ModelInputs(tuple(specs), structure)


def output_names(graph: Any, structure: Any = None) -> list[str]:
    """Names a model's outputs: by the keys of a dictionary, by the graph, else by number.

    Args:
        graph: a graph, or None with `structure`.
        structure: the result of a call of any other model.
    """
    if graph is not None:
        return _keys(graph._outputs_struct) or list(graph.output_names)
    numbered = [f"output_{i + 1}" for i in range(len(keras.tree.flatten(structure)))]
    return _keys(structure) or numbered


def choose_output(names: Sequence[str], output_name: str | None, path: str) -> int:
    """Finds the index of the output that `output_name` names.

    Args:
        names: the names of the model's outputs.
        output_name: one of them; None for the only one.
        path: the checkpoint, for messages.

    Raises:
        InputError: there is no such output, or there are several and none is named.
    """
    if output_name is None and len(names) == 1:
        return 0
    listed = ", ".join(names)
    if output_name is None:
        raise InputError(
            f"{path} has {len(names)} outputs ({listed}); choose one with `output_name`."
        )
    if list(names).count(output_name) > 1:
        raise InputError(
            f"`output_name={output_name}` is the name of several outputs of {path} ({listed}); "
            "give their layers other names."
        )
    if output_name not in names:
        raise InputError(
            f"`output_name={output_name}` is not an output of {path}; its outputs are {listed}."
        )
    return list(names).index(output_name)


def _keys(structure: Any) -> list[str]:
    """Returns the keys of a flat dictionary in Keras's order; none for anything else."""
    if not isinstance(structure, Mapping) or any(
        keras.tree.is_nested(value) for value in structure.values()
    ):
        return []
    return [str(path[0]) for path, _ in keras.tree.flatten_with_path(structure)]


def _shapes(config: Any) -> tuple[Any, list[tuple[int | None, ...]]]:
    """Reads the shapes of a build config.

    Returns:
        Its structure with a leaf for each shape, and the shapes in the structure's order.
    """
    if isinstance(config, Mapping):
        names = [str(path[0]) for path, _ in keras.tree.flatten_with_path(dict.fromkeys(config, 0))]
        return dict.fromkeys(config, 0), [tuple(config[name]) for name in names]
    if all(size is None or isinstance(size, int) for size in config):
        return 0, [tuple(config)]
    return [0] * len(config), [tuple(shape) for shape in config]
