"""Step, learning rate and order of checkpoints, read from their files without building a model."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError, first_line
from transforms.models.checkpoint_files import digest, natural_key, read_config, unreadable

# The end of a variable's key in a TensorFlow checkpoint.
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class CheckpointInfo:
    """Facts about a checkpoint that its files hold."""

    path: str
    step: int | None
    """Updates that the optimizer had made; None if the checkpoint does not hold it."""
    learning_rate: float | None
    """The rate at saving: a constant, or a schedule at `step`; None with a `note`."""
    digest: str
    """SHA-256 of the content, hexadecimal."""
    note: str
    """What is missing and why; empty if nothing is."""


def inspect(path: str) -> CheckpointInfo:
    """Reads step, learning rate and digest of a checkpoint.

    A learning-rate schedule that is not Keras's own is known only after `import_modules`.

    Args:
        path: a local .keras or .weights.h5 file, or the prefix of a TensorFlow checkpoint.

    Raises:
        InputError: the file is missing, cut off or of another kind.
    """
    content = digest(path)
    try:
        if path.endswith(".keras"):
            step, rate, note = _inspect_archive(path)
        elif path.endswith(".weights.h5"):
            step, rate, note = _inspect_weights(path)
        else:
            step, rate, note = _inspect_tensorflow(path)
    except InputError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return CheckpointInfo(path=path, step=step, learning_rate=rate, digest=content, note=note)


def order(infos: Sequence[CheckpointInfo], keep: bool) -> list[CheckpointInfo]:
    """Sorts checkpoints into the order of training.

    Args:
        infos: the checkpoints.
        keep: whether the user listed them, so that their order stays.

    Returns:
        As listed; else by step where all steps are known and distinct; else in the natural order of
        the paths.
    """
    if keep:
        return list(infos)
    steps = [info.step for info in infos]
    if None not in steps and len(set(steps)) == len(steps):
        return sorted(infos, key=lambda info: info.step or 0)
    return sorted(infos, key=lambda info: natural_key(info.path))


def _inspect_archive(path: str) -> tuple[int | None, float | None, str]:
    """Reads step, learning rate and note of a .keras file."""
    compiled = read_config(path).get("compile_config") or {}
    with zipfile.ZipFile(path) as archive:
        # Reading the member as a whole also checks its CRC.
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r") as weights:
        step, _ = _optimizer_state(weights)
    optimizer = compiled.get("optimizer")
    if not optimizer:
        return step, None, "it was saved without an optimizer"
    if not isinstance(optimizer, Mapping):
        return step, None, f"its optimizer {optimizer!r} was compiled by name and never built"
    config = optimizer.get("config") or {}
    config = (config.get("inner_optimizer") or {}).get("config") or config
    rate = config.get("learning_rate")
    if isinstance(rate, (int, float)) and not isinstance(rate, bool):
        return step, _shortest(rate), ""
    if not isinstance(rate, Mapping):
        return step, None, "its optimizer holds no learning rate"
    return step, *_evaluate_schedule(rate, step)


def _evaluate_schedule(serialized: Mapping[str, Any], step: int | None) -> tuple[float | None, str]:
    """Evaluates a serialized learning-rate schedule; returns the rate, or None and a note."""
    name = serialized.get("registered_name") or serialized.get("class_name")
    failed = f"its learning-rate schedule {name} cannot be evaluated"
    if step is None:
        return None, f"{failed} without the optimizer's step"
    try:
        schedule = keras.optimizers.schedules.deserialize(dict(serialized))
        return _shortest(keras.ops.convert_to_numpy(schedule(step))), ""
    except Exception as error:
        return None, f"{failed} ({first_line(error)})"


def _inspect_weights(path: str) -> tuple[int | None, float | None, str]:
    """Reads step, learning rate and note of a .weights.h5 file."""
    with h5py.File(path, "r") as weights:
        step, rate = _optimizer_state(weights)
    if step is None:
        return step, rate, "it was saved without an optimizer"
    return step, rate, "" if rate is not None else "a weights file holds no learning-rate schedule"


def _optimizer_state(weights: h5py.File) -> tuple[int | None, float | None]:
    """Reads the step and, where it is a constant, the learning rate of a Keras weights file."""
    variables = weights.get("optimizer/inner_optimizer/vars") or weights.get("optimizer/vars")
    if variables is None or "0" not in variables:
        return None, None
    step = variables["0"]
    if step.shape != () or not np.issubdtype(step.dtype, np.integer):
        return None, None
    rate = variables.get("1")
    # With a schedule the second variable is a slot; a slot has a model variable's shape.
    constant = rate is not None and rate.shape == () and np.issubdtype(rate.dtype, np.floating)
    return int(step[()]), _shortest(rate[()]) if constant else None


def _inspect_tensorflow(prefix: str) -> tuple[int | None, float | None, str]:
    """Reads step, learning rate and note of a TensorFlow checkpoint."""
    reader = tf.train.load_checkpoint(prefix)
    variables = reader.get_variable_to_shape_map()
    keys = [key.removesuffix(_VALUE) for key in variables if key.endswith(_VALUE)]

    def scalar(*names: str) -> Any:
        matches = [key for key in keys if key.rsplit("/", 1)[-1] in names]
        # A loss-scale optimizer has a step of its own, and hands the rate on.
        matches = [key for key in matches if "inner_optimizer" in key.split("/")] or matches
        values = {reader.get_tensor(key + _VALUE).item() for key in matches}
        return values.pop() if len(values) == 1 else None

    step, rate = scalar("_iterations", "iter"), scalar("_learning_rate", "learning_rate")
    if step is None:
        return None, None, "it holds no optimizer, or several"
    note = "" if rate is not None else "a TensorFlow checkpoint holds no learning-rate schedule"
    return int(step), None if rate is None else _shortest(rate), note


def _shortest(rate: Any) -> float:
    """Returns the shortest decimal of a rate, which Keras keeps in float32.

    For example 0.1 instead of 0.10000000149.
    """
    return float(np.format_float_positional(np.float32(rate), unique=True))
