"""Where the parts of an example are: files, keys, shapes and dtypes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from transforms.core.errors import InputError
from transforms.core.user_modules import name_clash
from transforms.storage.records.feature_record import FIELDS


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input of the model.

    Attributes:
        key: the key that holds it in an example.
        shape: its shape without the batch dimension.
        dtype: the name of its dtype.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class ExampleFormat:
    """Where an example's parts are.

    Attributes:
        inputs: the model's inputs, in its order.
        label_key: key of the label; unused where `labelled` is false.
        label_width: numbers of a label: 1, or C for one number per output.
        labelled: whether labels are read; they are not where the model's prediction is the label.
        id_key: key of the id, or None for `<file>#<index>`.
        keep_keys: keys that are copied into the feature record.
        parse_fn: `module:function` that turns a serialized record into a mapping of the keys above,
            or None for `tf.train.Example`.

    Raises:
        InputError: a kept key would overwrite a field of the feature record.
    """

    inputs: tuple[InputSpec, ...]
    label_key: str = "label"
    label_width: int = 1
    labelled: bool = True
    id_key: str | None = None
    keep_keys: tuple[str, ...] = ()
    parse_fn: str | None = None

    def __post_init__(self) -> None:
        clash = sorted({*self.keep_keys} & {*FIELDS})
        if clash:
            raise InputError(
                f"`keep_keys`: {', '.join(clash)} would overwrite a field of the feature record: "
                "keep another key"
            )


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of examples.

    Attributes:
        index: its position in the data set's order.
        path: its path.
        name: what ids of its examples begin with, where there is no id key.
        size: its bytes, as stored.
        known: [n] indices of records that are skipped, because their features exist already; or
            None.
    """

    index: int
    path: str
    name: str
    size: int
    known: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)


@functools.cache
def resolve_function(name: str, field: str) -> Callable[..., Any]:
    """Imports the function with the name `module:function`; `field` is its setting in messages.

    Raises:
        InputError: there is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"`{field}={name!r}` cannot be imported ({error}): expected module:function on the "
            f"Python path of every worker{name_clash(module)}"
        ) from error
    if not callable(function):
        raise InputError(f"`{field}={name!r}` is not a function")
    return function
