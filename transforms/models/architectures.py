"""Keras models of checkpoints: built from an archive, a JSON file or code, with their weights."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from transforms.core.errors import InputError, first_line
from transforms.core.user_modules import OWN_PACKAGES, name_clash
from transforms.models.checkpoint_files import files_of, read_config
from transforms.models.inputs import graph_of
from transforms.models.weights import (
    bind,
    bind_tensorflow,
    check_vocabularies,
    load_error,
    load_weights,
)


@dataclass(frozen=True)
class BuiltModel:
    """A Keras model, and the loss that it was compiled with."""

    model: Any
    loss: Any
    """`compile_config["loss"]`; None if it was not compiled."""
    loss_weights: Any
    """`compile_config["loss_weights"]`."""

    @classmethod
    def of(cls, model: Any, config: Mapping[str, Any]) -> BuiltModel:
        """Takes loss and loss weights from the configuration of a serialized model."""
        compiled = config.get("compile_config") or {}
        return cls(model, compiled.get("loss"), compiled.get("loss_weights"))


def import_modules(modules: Sequence[str]) -> None:
    """Imports the modules that register custom code.

    Raises:
        InputError: a module cannot be imported.
    """
    for module in modules:
        if module in OWN_PACKAGES:
            # It can be imported, and registers nothing of the user's.
            raise InputError(f"`imports={module}` names no module of yours{name_clash(module)}.")
        _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"`imports={module}` cannot be imported: {type(error).__name__}: "
            f"{first_line(error)}; install it where the program runs{name_clash(module)}."
        ) from error


def load_model(path: str, architecture: str | None, seen: list[Any]) -> BuiltModel:
    """Loads one checkpoint into a model of its own.

    Args:
        path: local path of the checkpoint.
        architecture: the value of `model`, for checkpoints that hold weights alone.
        seen: the models that were built for other checkpoints; this one is added.

    Raises:
        InputError: a file cannot be read, custom code is missing, or a variable has no value in
            the file.
    """
    files_of(path)
    if path.endswith(".keras"):
        return _load_archive(path)
    if not architecture:
        raise InputError(
            f"Checkpoint {path} holds weights alone; pass `model` with the architecture: a .keras "
            "file, a .json file, or module:function."
        )
    built = _build(architecture)
    model = built.model
    if any(model is other for other in seen):
        raise InputError(
            f"`model={architecture}` returned the same model twice, expected a new one from each "
            "call."
        )
    seen.append(model)
    if not model.built or not model.weights:
        raise InputError(
            f"`model={architecture}` gives a model without variables; give it an input shape "
            "(keras.Input), or call it once."
        )
    if path.endswith(".weights.h5"):
        bind(model, path, lambda: load_weights(model, path))
    else:
        bind_tensorflow(model, path)
    check_vocabularies(model, path)
    return built


def _load_archive(path: str) -> BuiltModel:
    """Loads a .keras file."""
    config = read_config(path)
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise load_error(path, error) from error
    if graph_of(model) is None and model.weights:
        # Keras leaves layers alone that a subclassed model has not built by then.
        bind(model, path, lambda: load_weights(model, path))
    return BuiltModel.of(model, config)


def _build(source: str) -> BuiltModel:
    """Builds a new model with arbitrary weights from the value of `model`."""
    if source.endswith((".keras", ".json")):
        built = _build_from_file(source)
    else:
        built = _build_from_code(source)
    if not isinstance(built.model, keras.Model):
        raise InputError(
            f"`model={source}` gives a {type(built.model).__name__}, expected a Keras model."
        )
    return built


def _build_from_file(source: str) -> BuiltModel:
    """Builds the architecture of a .keras or .json file."""
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
    built = BuiltModel.of(None, config)
    try:
        # Without the compile_config, so that an unknown metric does not matter.
        model = keras.saving.deserialize_keras_object(
            {**config, "compile_config": None}, safe_mode=True
        )
    except Exception as error:
        raise load_error(source, error) from error
    return BuiltModel(model, built.loss, built.loss_weights)


def _build_from_code(source: str) -> BuiltModel:
    """Calls `module:function`, which returns a model."""
    module, colon, function = source.partition(":")
    if not colon:
        raise InputError(
            f"`model={source}` is not an architecture; expected a .keras file, a .json file, or "
            "module:function."
        )
    _import(module)
    build = getattr(importlib.import_module(module), function, None)
    if not callable(build):
        raise InputError(
            f"`model={source}`: module {module} has no function {function}{name_clash(module)}."
        )
    try:
        model = build()
    except Exception as error:
        raise InputError(
            f"`model={source}` failed: {type(error).__name__}: {first_line(error)}."
        ) from error
    compiled = isinstance(model, keras.Model) and model.compiled
    return BuiltModel.of(model, {"compile_config": model.get_compile_config()} if compiled else {})
