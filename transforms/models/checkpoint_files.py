"""What a checkpoint's files say without building its model: which files belong together, step,
learning rate, order.

Everything but `group_paths` and `order` reads local files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError, first_line

KINDS = (
    "a .keras file, a .weights.h5 file, or the .index and .data-* files of a TensorFlow checkpoint"
)
_DATA_FILE = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself."""

    path: str
    step: int | None
    """Updates that the optimizer had made; None if the checkpoint does not hold it."""
    learning_rate: float | None
    """The rate at saving: a constant, or a schedule at `step`; None with a `note`."""
    digest: str
    """SHA-256 of the content, hexadecimal."""
    note: str
    """What is missing and why; empty if nothing is."""


def group_paths(paths: Sequence[str]) -> list[str]:
    """Turns matched files into checkpoints.

    Args:
        paths: file names, local or remote; none is opened.

    Returns:
        .keras and .weights.h5 files as they are, a TensorFlow checkpoint's files as their prefix;
            in order of first
        appearance. The `checkpoint` file that TensorFlow keeps beside its checkpoints is left out.

    Raises:
        InputError: a file of another kind, or a TensorFlow checkpoint whose .index or .data-* file
            is missing.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        data = _DATA_FILE.fullmatch(path)
        if path.endswith((".keras", ".weights.h5")):
            found.setdefault(path, set()).update(("index", "data"))
        elif path.endswith(".index"):
            found.setdefault(path.removesuffix(".index"), set()).add("index")
        elif data:
            found.setdefault(data[1], set()).add("data")
        elif path.replace("\\", "/").rsplit("/", 1)[-1] != "checkpoint":
            raise InputError(f"{path} is not a checkpoint; expected {KINDS}.")
    for prefix, parts in found.items():
        if len(parts) == 1:
            missing = f"{prefix}.data-*" if "index" in parts else f"{prefix}.index"
            raise InputError(
                f"TensorFlow checkpoint {prefix} lacks {missing}; `checkpoints` must match both of "
                "its kinds of file."
            )
    return list(found)


def natural_key(path: str) -> tuple[Any, ...]:
    """Gives a sort key under which `epoch-2` comes before `epoch-10`."""
    parts = re.split(r"(\d+)", path)
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path)


def inspect(path: str) -> CheckpointInfo:
    """Reads step, learning rate and digest of a checkpoint without building the model.

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
            with h5py.File(path, "r") as weights:
                step, rate = _optimizer_state(weights)
            note = "" if rate is not None else "a weights file holds no learning-rate schedule"
            note = "it was saved without an optimizer" if step is None else note
        else:
            step, rate, note = _inspect_tensorflow(path)
    except InputError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return CheckpointInfo(path=path, step=step, learning_rate=rate, digest=content, note=note)


def order(infos: Sequence[CheckpointInfo], keep: bool) -> list[CheckpointInfo]:
    """Puts checkpoints in the order of training.

    Args:
        infos: what `inspect` gave.
        keep: leave them as given, because the user listed them.

    Returns:
        As given; else by step where all steps are known and distinct; else in the natural order of
            the paths.
    """
    if keep:
        return list(infos)
    steps = [info.step for info in infos]
    if None not in steps and len(set(steps)) == len(steps):
        return sorted(infos, key=lambda info: info.step or 0)
    return sorted(infos, key=lambda info: natural_key(info.path))


def files_of(path: str) -> list[str]:
    """Lists the files of a checkpoint; raises InputError if one is missing."""
    if path.endswith((".keras", ".weights.h5")):
        files = [path]
    else:
        folder, name = os.path.split(path)
        beside = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
        matches = [_DATA_FILE.fullmatch(file) for file in beside]
        data = [os.path.join(folder, match[0]) for match in matches if match and match[1] == name]
        if not data and not os.path.isfile(path + ".index"):
            raise InputError(f"{path} is not a checkpoint, or does not exist; expected {KINDS}.")
        files = [path + ".index", *(data or [path + ".data-00000-of-00001"])]
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"Checkpoint file {file} does not exist.")
    return files


def digest(path: str) -> str:
    """Computes the SHA-256 of a checkpoint's content, its files one after the other; hexadecimal.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    content = hashlib.sha256()
    try:
        for file in files_of(path):
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    content.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return content.hexdigest()


def unreadable(path: str, error: Exception) -> InputError:
    """Says that a checkpoint cannot be read, and why."""
    return InputError(
        f"Checkpoint {path} cannot be read ({first_line(error)}); it is cut off or damaged: copy "
        "or save it again."
    )


def read_config(path: str) -> dict[str, Any]:
    """Reads config.json of a .keras archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except Exception as error:
        raise unreadable(path, error) from error
    return config


def _inspect_archive(path: str) -> tuple[int | None, float | None, str]:
    """Gives step, learning rate and note of a .keras file."""
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
        return step, _rate(rate), ""
    if not isinstance(rate, Mapping):
        return step, None, "its optimizer holds no learning rate"
    name = rate.get("registered_name") or rate.get("class_name")
    if step is None:
        return (
            None,
            None,
            f"its learning-rate schedule {name} cannot be evaluated without the optimizer's step",
        )
    try:
        schedule = keras.optimizers.schedules.deserialize(dict(rate))
        return step, _rate(keras.ops.convert_to_numpy(schedule(step))), ""
    except Exception as error:
        return (
            step,
            None,
            f"its learning-rate schedule {name} cannot be evaluated ({first_line(error)})",
        )


def _optimizer_state(weights: h5py.File) -> tuple[int | None, float | None]:
    """Gives the step and, where it is a constant, the learning rate of a Keras weights file."""
    variables = weights.get("optimizer/inner_optimizer/vars") or weights.get("optimizer/vars")
    if variables is None or "0" not in variables:
        return None, None
    step = variables["0"]
    if step.shape != () or not np.issubdtype(step.dtype, np.integer):
        return None, None
    rate = variables.get("1")
    # With a schedule the second variable is a slot; a slot has a model variable's shape.
    constant = rate is not None and rate.shape == () and np.issubdtype(rate.dtype, np.floating)
    return int(step[()]), _rate(rate[()]) if constant else None


def _rate(value: Any) -> float:
    """Gives the shortest decimal of a rate, which Keras keeps in float32: 0.1 instead of
    0.10000000149.
    """
    return float(np.format_float_positional(np.float32(value), unique=True))


def _inspect_tensorflow(prefix: str) -> tuple[int | None, float | None, str]:
    """Gives step, learning rate and note of a TensorFlow checkpoint."""
    reader = tf.train.load_checkpoint(prefix)
    keys = [
        key.removesuffix(_VALUE)
        for key in reader.get_variable_to_shape_map()
        if key.endswith(_VALUE)
    ]

    def scalar(*names: str) -> Any:
        found = [key for key in keys if key.rsplit("/", 1)[-1] in names]
        # A loss-scale optimizer has a step of its own, and hands the rate on.
        found = [key for key in found if "inner_optimizer" in key.split("/")] or found
        values = {reader.get_tensor(key + _VALUE).item() for key in found}
        return values.pop() if len(values) == 1 else None

    step, rate = scalar("_iterations", "iter"), scalar("_learning_rate", "learning_rate")
    if step is None:
        return None, None, "it holds no optimizer, or several"
    note = "" if rate is not None else "a TensorFlow checkpoint holds no learning-rate schedule"
    return int(step), None if rate is None else _rate(rate), note
