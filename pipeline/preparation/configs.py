"""Flags as configurations of the library."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TypeVar

_C = TypeVar("_C")


def from_flags(kind: type[_C], args: argparse.Namespace) -> _C:
    """Returns a configuration whose fields have the values of the flags of the same names.

    A field keeps its default if the command has no such flag.

    Args:
        kind: a dataclass, such as `ModelConfig`.
        args: the parsed flags.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in vars(args).items() if name in names})
