"""One serialized example, parsed or rejected with what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from transforms.examples import rejects
from transforms.examples.batch import ParsedExample
from transforms.examples.format import ExampleFormat, resolve_function
from transforms.examples.parse_input import parse_input
from transforms.examples.rejects import Reject, Unusable

# Bytes of the longest id that is used: arrays of ids are as wide as their longest.
LONGEST_ID = 512


def parse_example(
    serialized: bytes, name: str, offset: int, source: str, form: ExampleFormat
) -> ParsedExample | Reject:
    """Parses one serialized record; rejects it if it cannot be used.

    Args:
        serialized: the record.
        name: what the id begins with, where there is no id key.
        offset: the record's index in its file.
        source: path of the file, for the reject.
        form: where the example's parts are.

    Raises:
        InputError: the function that `form` names cannot be imported.
    """
    example_id: str | None = None
    try:
        values = _values(serialized, form)
        example_id = _id(values, name, offset, form)
        inputs = tuple(parse_input(_value(values, spec.key), spec) for spec in form.inputs)
        label = _label(values, form) if form.labelled else None
        missing = [key for key in form.keep_keys if key not in values]
        if missing:
            raise Unusable(
                rejects.MISSING_KEY, f"no key {missing[0]!r} to keep; keys: {_keys(values)}"
            )
        kept = {key: _kept(values[key]) for key in form.keep_keys}
    except Unusable as error:
        return Reject(source, offset, example_id, error.reason, error.detail)
    return ParsedExample(example_id, inputs, label, kept)


def _values(serialized: bytes, form: ExampleFormat) -> Mapping[str, Any]:
    if form.parse_fn:
        function = resolve_function(form.parse_fn, "parse_fn")
        try:
            values = function(serialized)
        except Exception as error:
            raise Unusable(
                rejects.PARSE_FN_FAILED, f"{form.parse_fn} raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(values, Mapping):
            raise Unusable(
                rejects.PARSE_FN_FAILED,
                f"{form.parse_fn} returned {type(values).__name__}, expected a mapping of keys to "
                "values",
            )
        return values
    try:
        example = tf.train.Example.FromString(serialized)
    except Exception as error:
        raise Unusable(rejects.NOT_AN_EXAMPLE, "the record is not a tf.train.Example") from error
    return example.features.feature


def _keys(values: Mapping[str, Any]) -> str:
    return ", ".join(sorted(values)) or "none"


def _value(values: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a key: an array for a list of numbers, bytes for a list of one byte
    string; else what a parsing function returned.
    """
    if key not in values:
        raise Unusable(rejects.MISSING_KEY, f"no key {key!r}; keys: {_keys(values)}")
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
    raise Unusable(
        rejects.WRONG_TYPE,
        f"key {key!r} is {'a list of several byte strings' if kind else 'empty'}",
    )


def _id(values: Mapping[str, Any], name: str, offset: int, form: ExampleFormat) -> str:
    example_id = f"{name}#{offset}" if form.id_key is None else _given_id(values, form.id_key)
    size = len(example_id.encode())
    if size > LONGEST_ID:
        raise Unusable(rejects.BAD_ID, f"the id has {size} bytes, expected at most {LONGEST_ID}")
    return example_id


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
            raise Unusable(rejects.BAD_ID, f"the id under {key!r} is not UTF-8") from error
    if not isinstance(value, str):
        raise Unusable(rejects.BAD_ID, f"the id under {key!r} is neither text nor one integer")
    if not value or "\0" in value:
        raise Unusable(rejects.BAD_ID, f"the id under {key!r} is empty or holds a NUL character")
    return value


def _label(values: Mapping[str, Any], form: ExampleFormat) -> np.ndarray:
    value = _value(values, form.label_key)
    try:
        label = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise Unusable(
            rejects.WRONG_TYPE, f"the label under {form.label_key!r} is not numbers"
        ) from error
    if label.size != form.label_width:
        raise Unusable(
            rejects.WRONG_SIZE,
            f"the label under {form.label_key!r} has {label.size} numbers, the loss takes "
            f"{form.label_width}",
        )
    return label


def _kept(value: Any) -> tf.train.Feature:
    """Returns the value of a kept key as a feature record holds it."""
    if isinstance(value, tf.train.Feature):
        return value
    if isinstance(value, (str, bytes)):
        data = value.encode() if isinstance(value, str) else value
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    array = np.asarray(value).reshape(-1)
    if array.dtype.kind in "iub":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=array.tolist()))
    return tf.train.Feature(float_list=tf.train.FloatList(value=array.tolist()))
