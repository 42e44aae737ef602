"""Weights files read into a model, with proof that each variable gets its value from the file."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError, first_line
from transforms.models.checkpoint_files import unreadable


def load_error(path: str, error: Exception) -> InputError:
    """Makes the error for a model that Keras could not build or load."""
    text = str(error)
    missing = re.search(r"Could not locate (?:class|function) '([^']+)'", text)
    if missing:
        return InputError(
            f"{path} needs the custom object {missing[1]}; name the module that registers it with "
            "`imports`."
        )
    if "Lambda" in text or "lambda" in text:
        return InputError(
            f"{path} holds a Lambda layer or function, which Keras's safe mode does not load; save "
            "the model with a registered layer in its place."
        )
    return InputError(
        f"Checkpoint {path} cannot be loaded: {first_line(error)}; it is damaged, or its weights "
        "do not fit its architecture."
    )


def load_weights(model: Any, path: str) -> None:
    """Reads a .weights.h5 file into a model.

    Raises:
        InputError: the file does not fit the model.
    """
    try:
        # The optimizer's state is not needed, and may be of another size.
        model.load_weights(path, objects_to_skip=[model.optimizer] if model.compiled else None)
    except Exception as error:
        raise load_error(path, error) from error


def bind(model: Any, path: str, read: Callable[[], None]) -> None:
    """Loads weights, and checks that every variable got its value from the file.

    Args:
        model: the model.
        path: the checkpoint, for messages.
        read: reads the file into the model.

    Raises:
        InputError: some variable did not.
    """
    left = _unbound(model, read)
    if left:
        raise InputError(
            f"Checkpoint {path} holds no value for {_listed(left)}; it is of another model than "
            "`model`."
        )


def check_vocabularies(model: Any, path: str) -> None:
    """Checks that lookup layers have a vocabulary, which is not among the variables.

    Raises:
        InputError: one has an empty vocabulary.
    """
    for layer in model._flatten_layers():
        if hasattr(layer, "lookup_table") and not int(layer.lookup_table.size()):
            raise InputError(
                f"Checkpoint {path} holds weights alone, and the vocabulary of {layer.name}, which "
                "was adapted to data, is not among them; "
                "save .keras files, or give the layer its vocabulary in `model=module:function`."
            )


def _unbound(model: Any, read: Callable[[], None]) -> list[str]:
    """Returns the paths of the variables that `read` leaves alone.

    Variables are filled with a mark first. A file may hold that very value (a truth value, the NaN
    of a diverged run), so variables that still show it get another mark and are read once more.
    Metrics and the state of random generators are not among `model.weights`.
    """
    for variable in model.weights:
        _fill(variable, first=True)
    read()
    marked = [variable for variable in model.weights if _shows_mark(variable, first=True)]
    if not marked:
        return []
    for variable in marked:
        _fill(variable, first=False)
    read()
    return [variable.path for variable in marked if _shows_mark(variable, first=False)]


def _mark(variable: Any, first: bool) -> Any:
    """Returns the first or second mark of a variable's dtype."""
    if keras.backend.is_float_dtype(variable.dtype):
        return np.nan if first else 0.0
    return 1 if first else 0


def _fill(variable: Any, first: bool) -> None:
    variable.assign(keras.ops.full(variable.shape, _mark(variable, first), dtype=variable.dtype))


def _shows_mark(variable: Any, first: bool) -> bool:
    value = np.asarray(keras.ops.convert_to_numpy(variable))
    if not value.size:
        return False
    mark = _mark(variable, first)
    # NumPy defines equality of NaN for its own floats only, and bfloat16 is none of them.
    value = value.astype(np.float64)
    return bool(np.array_equal(value, np.full_like(value, mark), equal_nan=True))


def bind_tensorflow(model: Any, prefix: str) -> None:
    """Restores a TensorFlow checkpoint, whatever name the model has in it.

    Raises:
        InputError: the file cannot be read, or some variable gets no value from it.
    """
    try:
        names = _root_names(prefix)
    except Exception as error:
        raise unreadable(prefix, error) from error
    fewest: list[str] | None = None
    failure: Exception | None = None
    for name in _candidate_names(names):
        checkpoint = (
            tf.train.Checkpoint(model) if name is None else tf.train.Checkpoint(**{name: model})
        )
        try:
            left = _unbound(model, functools.partial(_restore, checkpoint, prefix))
        except Exception as error:
            failure = failure or error
            continue
        if not left:
            _finalize(model)
            return
        if fewest is None or len(left) < len(fewest):
            fewest = left
    if any(name.startswith("layer_with_weights-") for name in _deep_names(prefix)):
        raise InputError(
            f"Checkpoint {prefix} was written by Keras 2, whose variables have other names; load "
            "it with Keras 2 (the tf_keras package) and save it as .weights.h5."
        )
    if fewest is None:
        raise InputError(
            f"Checkpoint {prefix} does not fit `model`: "
            f"{first_line(failure or ValueError('nothing was read'))}."
        )
    raise InputError(
        f"Checkpoint {prefix} holds no value for {_listed(fewest)}; it is of another model than "
        f"`model`, or holds it deeper than under {', '.join(names) or 'its root'}."
    )


def _candidate_names(names: Sequence[str]) -> list[str | None]:
    """Returns the names that the model may have in a checkpoint, likely ones first.

    Args:
        names: the names at the checkpoint's root. The model may also be the root itself (None).
    """
    preferred = [name for name in ("model", "net") if name in names]
    others = [
        name
        for name in names
        if name not in (*preferred, "optimizer", "save_counter", "step", "epoch")
    ]
    return [*preferred, None, *others]


def _finalize(model: Any) -> None:
    """Makes layers such as Normalization compute their constants from their new variables."""
    for layer in model._flatten_layers():
        if layer.built and hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _restore(checkpoint: Any, prefix: str) -> None:
    """Reads the variables of an object from a TensorFlow checkpoint."""
    # The file usually holds more, such as the optimizer.
    checkpoint.read(prefix).expect_partial()


def _listed(names: Sequence[str]) -> str:
    """Lists the first names and counts the others."""
    more = f" and {len(names) - 5} more variables" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _object_graph(prefix: str) -> Any:
    """Reads the object graph of a TensorFlow checkpoint."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(
        tf.train.load_checkpoint(prefix).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    return graph


def _root_names(prefix: str) -> list[str]:
    """Returns the names under which a TensorFlow checkpoint's root holds objects.

    The keys of the variables are not enough: a variable that the optimizer knows too may be stored
    under the optimizer's name alone.
    """
    return [child.local_name for child in _object_graph(prefix).nodes[0].children]


def _deep_names(prefix: str) -> set[str]:
    """Returns every name in a TensorFlow checkpoint's object graph."""
    return {child.local_name for node in _object_graph(prefix).nodes for child in node.children}
