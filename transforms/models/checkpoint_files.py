"""Files of checkpoints: how they belong together, and how they are read and identified.

Everything but `group_paths` and `natural_key` reads local files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Sequence
from typing import Any

from transforms.core.errors import InputError, first_line

KINDS = (
    "a .keras file, a .weights.h5 file, or the .index and .data-* files of a TensorFlow checkpoint"
)
_DATA_FILE = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


def group_paths(paths: Sequence[str]) -> list[str]:
    """Groups files into checkpoints.

    Args:
        paths: file names, local or remote; none is opened.

    Returns:
        .keras and .weights.h5 files as they are, a TensorFlow checkpoint's files as their prefix;
        in order of first appearance. The file `checkpoint` that TensorFlow keeps beside its
        checkpoints is left out.

    Raises:
        InputError: a file of another kind, or a TensorFlow checkpoint whose .index or .data-* file
            is missing.
    """
    parts_of: dict[str, set[str]] = {}
    for path in paths:
        data = _DATA_FILE.fullmatch(path)
        if path.endswith((".keras", ".weights.h5")):
            parts_of.setdefault(path, set()).update(("index", "data"))
        elif path.endswith(".index"):
            parts_of.setdefault(path.removesuffix(".index"), set()).add("index")
        elif data:
            parts_of.setdefault(data[1], set()).add("data")
        elif path.replace("\\", "/").rsplit("/", 1)[-1] != "checkpoint":
            raise InputError(f"{path} is not a checkpoint; expected {KINDS}.")
    for prefix, parts in parts_of.items():
        if len(parts) == 1:
            missing = f"{prefix}.data-*" if "index" in parts else f"{prefix}.index"
            raise InputError(
                f"TensorFlow checkpoint {prefix} lacks {missing}; `checkpoints` must match both of "
                "its kinds of file."
            )
    return list(parts_of)


def natural_key(path: str) -> tuple[Any, ...]:
    """Returns a sort key that puts `epoch-2` before `epoch-10`."""
    parts = re.split(r"(\d+)", path)
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path)


def files_of(path: str) -> list[str]:
    """Lists the files of a checkpoint.

    Args:
        path: a local .keras or .weights.h5 file, or the prefix of a TensorFlow checkpoint.

    Raises:
        InputError: one of them is missing.
    """
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
    """Computes the SHA-256 of a checkpoint's content, its files one after the other.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    content = hashlib.sha256()
    try:
        for file in files_of(path):
            with open(file, "rb") as stream:
                while part := stream.read(1 << 20):
                    content.update(part)
    except OSError as error:
        raise unreadable(path, error) from error
    return content.hexdigest()


def unreadable(path: str, error: Exception) -> InputError:
    """Makes the error for a checkpoint that cannot be read."""
    return InputError(
        f"Checkpoint {path} cannot be read ({first_line(error)}); it is cut off or damaged: copy "
        "or save it again."
    )


def read_config(path: str) -> dict[str, Any]:
    """Reads the configuration of a .keras file.

    Raises:
        InputError: the file is cut off, or no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except Exception as error:
        raise unreadable(path, error) from error
    return config
