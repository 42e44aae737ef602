"""What a model takes and gives, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from transforms.core.errors import InputError


@dataclass(frozen=True)
class InputSpec:
    """One input of the model."""

    name: str
    shape: tuple[int | None, ...]
    """Without the batch dimension."""
    dtype: str


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model in a fixed order, and how its `call` takes them."""

    specs: tuple[InputSpec, ...]
    _structure: Any

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Puts tensors, in the order of `specs`, into the structure that the model is called
        with.
        """
        return keras.tree.pack_sequence_as(self._structure, list(tensors))


def graph_of(operation: Any) -> Any | None:
    """Gives the graph of a Sequential or functional model, None for anything else."""
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
    """Names a graph's inputs: by the keys of the dictionary that it takes, else by their
    tensors.
    """
    return _keys(graph._inputs_struct) or [tensor.name for tensor in graph.inputs]


def inputs_of(model: Any, path: str) -> Inputs:
    """Lists a model's inputs.

    A graph knows them. A model whose computation is code takes what its `input_spec` declares, else
    float32 numbers of the shapes that it was built with.

    Raises:
        InputError: it tells neither.
    """
    # A functional model's own graph knows its inputs even if `call` does not follow it.
    graph = graph_of(model) or (model if isinstance(model, keras.Function) else None)
    if graph is not None:
        names = input_names(graph)
        specs = [
            InputSpec(name, tuple(tensor.shape[1:]), keras.backend.standardize_dtype(tensor.dtype))
            for name, tensor in zip(names, graph.inputs, strict=True)
        ]
        return Inputs(tuple(specs), graph._inputs_struct)
    declared = model.input_spec
    given = keras.tree.flatten(declared) if declared is not None else []
    if given and all(spec.shape is not None for spec in given):
        structure = declared
        shapes = [tuple(spec.shape) for spec in given]
    else:
        # Not the model's own method, which may say anything else.
        config = keras.Layer.get_build_config(model) or {}
        if "input_shape" not in config:
            raise InputError(
                f"{path} is a subclassed model ({type(model).__name__}) that does not tell the "
                "shapes of its inputs; set "
                "self.input_spec = keras.InputSpec(shape=(None, ...), dtype=...) in it, or call it "
                "once before saving."
            )
        structure, shapes = _shapes(config["input_shape"])
        if given and len(given) != len(shapes):
            raise InputError(
                f"{path}: input_spec declares {len(given)} inputs, the model was built with "
                f"{len(shapes)}."
            )
    names = _keys(structure) or [f"input_{i + 1}" for i in range(len(shapes))]
    dtypes = [
        keras.backend.standardize_dtype(spec.dtype) if spec.dtype else "float32" for spec in given
    ] or ["float32"] * len(shapes)
    return Inputs(
        tuple(
            InputSpec(name, shape[1:], dtype)
            for name, shape, dtype in zip(names, shapes, dtypes, strict=True)
        ),
        structure,
    )


def output_names(model: Any, outputs: Any = None) -> list[str]:
    """Names a model's outputs: by the keys of the dictionary that it gives, else as a graph names
    them, else by number.

    Args:
        model: a graph, or None with `outputs`.
        outputs: what a call of any other model gave.
    """
    if model is not None:
        return _keys(model._outputs_struct) or list(model.output_names)
    return _keys(outputs) or [f"output_{i + 1}" for i in range(len(keras.tree.flatten(outputs)))]


def choose_output(names: Sequence[str], wanted: str | None, path: str) -> int:
    """Finds the place of the output that `output_name` names.

    Raises:
        InputError: there is no such output, or there are several and none is named.
    """
    if wanted is None and len(names) == 1:
        return 0
    listed = ", ".join(names)
    if wanted is None:
        raise InputError(
            f"{path} has {len(names)} outputs ({listed}); choose one with `output_name`."
        )
    if list(names).count(wanted) > 1:
        raise InputError(
            f"`output_name={wanted}` is the name of several outputs of {path} ({listed}); give "
            "their layers other names."
        )
    if wanted not in names:
        raise InputError(
            f"`output_name={wanted}` is not an output of {path}; its outputs are {listed}."
        )
    return list(names).index(wanted)


def _keys(structure: Any) -> list[str]:
    """Gives the keys of a flat dictionary in the order in which Keras flattens it, nothing for
    anything else.
    """
    if not isinstance(structure, Mapping) or any(
        keras.tree.is_nested(value) for value in structure.values()
    ):
        return []
    return [str(path[0]) for path, _ in keras.tree.flatten_with_path(structure)]


def _shapes(config: Any) -> tuple[Any, list[tuple[int | None, ...]]]:
    """Gives the structure of a build config's shapes with a leaf for each, and the shapes in its
    order.
    """
    if isinstance(config, Mapping):
        names = [str(path[0]) for path, _ in keras.tree.flatten_with_path(dict.fromkeys(config, 0))]
        return dict.fromkeys(config, 0), [tuple(config[name]) for name in names]
    if all(size is None or isinstance(size, int) for size in config):
        return 0, [tuple(config)]
    return [0] * len(config), [tuple(shape) for shape in config]
