"""One serialized example into arrays of the model's shapes, or into a reject that says what is
wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from transforms.examples import rejects
from transforms.examples.batch import ParsedExample
from transforms.examples.format import ExampleFormat, InputSpec, resolve_function
from transforms.examples.rejects import Reject

# Ids are held in arrays as wide as the longest.
LONGEST_ID = 512

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


class _Unusable(Exception):
    def __init__(self, reason: str, detail: str, example_id: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.example_id = example_id


def parse_example(
    serialized: bytes, name: str, offset: int, source: str, form: ExampleFormat
) -> ParsedExample | Reject:
    """Parses one serialized record, or says why it cannot be used.

    `name` and `offset` make the id where there is no id key; `source` is the file for the reject.
    """
    example_id: str | None = None
    try:
        values = _mapping(serialized, form)
        example_id = _id(values, name, offset, form)
        inputs = tuple(_input(values, spec) for spec in form.inputs)
        label = _label(values, form) if form.labelled else None
        missing = [key for key in form.keep_keys if key not in values]
        if missing:
            raise _Unusable(
                rejects.MISSING_KEY, f"no key {missing[0]!r} to keep; keys: {_keys(values)}"
            )
        kept = {key: _kept(values[key]) for key in form.keep_keys}
    except _Unusable as error:
        return Reject(source, offset, error.example_id or example_id, error.reason, error.detail)
    return ParsedExample(example_id, inputs, label, kept)


def _mapping(serialized: bytes, form: ExampleFormat) -> Mapping[str, Any]:
    if form.parse_fn:
        function = resolve_function(form.parse_fn, "parse_fn")
        try:
            values = function(serialized)
        except Exception as error:
            raise _Unusable(
                rejects.PARSE_FN_FAILED, f"{form.parse_fn} raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(values, Mapping):
            raise _Unusable(
                rejects.PARSE_FN_FAILED,
                f"{form.parse_fn} returned {type(values).__name__}, expected a mapping of keys to "
                "values",
            )
        return values
    try:
        example = tf.train.Example.FromString(serialized)
    except Exception as error:
        raise _Unusable(rejects.NOT_AN_EXAMPLE, "the record is not a tf.train.Example") from error
    return example.features.feature


def _keys(values: Mapping[str, Any]) -> str:
    return ", ".join(sorted(values)) or "none"


def _value(values: Mapping[str, Any], key: str) -> Any:
    """The value under `key`: an array for number lists, bytes for a bytes list of one; what a
    parsing function returned as it is.
    """
    if key not in values:
        raise _Unusable(rejects.MISSING_KEY, f"no key {key!r}; keys: {_keys(values)}")
    feature = values[key]
    if not isinstance(feature, tf.train.Feature):
        return feature
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    if kind == "bytes_list" and len(feature.bytes_list.value) == 1:
        return feature.bytes_list.value[0]
    raise _Unusable(
        rejects.WRONG_TYPE,
        f"key {key!r} is {'a list of several byte strings' if kind else 'empty'}",
    )


def _id(values: Mapping[str, Any], name: str, offset: int, form: ExampleFormat) -> str:
    found = f"{name}#{offset}" if form.id_key is None else _given_id(values, form.id_key)
    if len(found.encode()) > LONGEST_ID:
        raise _Unusable(
            rejects.BAD_ID, f"the id has {len(found.encode())} bytes, expected at most {LONGEST_ID}"
        )
    return found


def _given_id(values: Mapping[str, Any], key: str) -> str:
    value = _value(values, key)
    if isinstance(value, np.ndarray) and value.size == 1 and np.issubdtype(value.dtype, np.integer):
        value = int(value.reshape(()))
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise _Unusable(rejects.BAD_ID, f"the id under {key!r} is not UTF-8") from error
    if not isinstance(value, str):
        raise _Unusable(rejects.BAD_ID, f"the id under {key!r} is neither text nor one integer")
    if not value or "\0" in value:
        raise _Unusable(rejects.BAD_ID, f"the id under {key!r} is empty or holds a NUL character")
    return value


def _input(values: Mapping[str, Any], spec: InputSpec) -> np.ndarray:
    value = _value(values, spec.key)
    if isinstance(value, bytes):
        value = _image(value, spec)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"holds {array.dtype}")
    except (TypeError, ValueError) as error:
        raise _Unusable(rejects.WRONG_TYPE, f"key {spec.key!r} is not numbers: {error}") from error
    if array.size != math.prod(spec.shape) or not _is_shaped(array, spec):
        raise _Unusable(
            rejects.WRONG_SIZE,
            f"key {spec.key!r} has {array.size} numbers of shape {array.shape}, the model's input "
            f"has {spec.shape}",
        )
    if not np.isfinite(array).all():
        raise _Unusable(rejects.NON_FINITE_INPUT, f"key {spec.key!r} holds a NaN or an infinity")
    cast = cast_exactly(array, spec)
    if cast is None:
        raise _Unusable(
            rejects.WRONG_TYPE,
            f"key {spec.key!r} holds numbers that the model's input of type {spec.dtype} cannot "
            "hold",
        )
    return cast.reshape(spec.shape)


def _is_shaped(array: np.ndarray, spec: InputSpec) -> bool:
    """Whether an array that has a shape of its own has the input's; as many numbers in another
    shape are another image.
    """
    if array.ndim < 2 or len(spec.shape) < 2:
        return True
    return [n for n in array.shape if n != 1] == [n for n in spec.shape if n != 1]


def cast_exactly(array: np.ndarray, spec: InputSpec) -> np.ndarray | None:
    """An array in the input's dtype, or None where an integer dtype would change a number."""
    with np.errstate(invalid="ignore"):
        cast = array.astype(spec.dtype, copy=False)
    return cast if cast.dtype.kind not in "iu" or np.array_equal(cast, array) else None


def _image(data: bytes, spec: InputSpec) -> np.ndarray:
    if not data.startswith((_JPEG, _PNG)):
        raise _Unusable(
            rejects.BAD_IMAGE,
            f"key {spec.key!r} is {len(data)} bytes that are neither PNG nor JPEG: decode them "
            "with `parse_fn`",
        )
    channels = spec.shape[-1] if len(spec.shape) == 3 and spec.shape[-1] in (1, 3, 4) else 0
    try:
        with tf.device("/CPU:0"):
            return tf.io.decode_image(data, channels=channels, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        raise _Unusable(
            rejects.BAD_IMAGE,
            f"key {spec.key!r} cannot be decoded: {str(error.message).splitlines()[0]}",
        ) from error


def _label(values: Mapping[str, Any], form: ExampleFormat) -> np.ndarray:
    value = _value(values, form.label_key)
    try:
        label = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise _Unusable(
            rejects.WRONG_TYPE, f"the label under {form.label_key!r} is not numbers"
        ) from error
    if label.size != form.label_width:
        raise _Unusable(
            rejects.WRONG_SIZE,
            f"the label under {form.label_key!r} has {label.size} numbers, the loss takes "
            f"{form.label_width}",
        )
    return label


def _kept(value: Any) -> tf.train.Feature:
    if isinstance(value, tf.train.Feature):
        return value
    if isinstance(value, (str, bytes)):
        data = value.encode() if isinstance(value, str) else value
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    array = np.asarray(value).reshape(-1)
    if array.dtype.kind in "iub":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=array.tolist()))
    return tf.train.Feature(float_list=tf.train.FloatList(value=array.tolist()))
