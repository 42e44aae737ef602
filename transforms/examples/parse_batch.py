"""Batches of serialized examples parsed at once, by TensorFlow's parser."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from transforms.core.ids import id_array
from transforms.examples.batch import ExampleBatch, ParsedExample, digests
from transforms.examples.format import ExampleFormat, InputFile
from transforms.examples.parse_input import cast_exactly
from transforms.examples.parse_record import LONGEST_ID, parse_example
from transforms.examples.rejects import Reject


class BatchParser:
    """Parses records of a file, many at once where they have one layout.

    The layout of the first good record is tried on all that follow. Records of another layout, and
    all records of a batch with a bad one, are parsed singly: a batch holds the same examples, bit
    for bit, either way.
    """

    def __init__(self, form: ExampleFormat, file: InputFile) -> None:
        self._form = form
        self._file = file
        self._layout: _Layout | None = None
        self._fast = not form.parse_fn and not form.keep_keys

    def parse(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch:
        """Parses records [n] at these offsets [n] of the file, and rejects those it cannot use."""
        batch = self.parse_at_once(serialized, offsets)
        return self._parse_singly(serialized, offsets) if batch is None else batch

    def parse_at_once(
        self, serialized: Sequence[bytes], offsets: Sequence[int]
    ) -> ExampleBatch | None:
        """Parses records as `parse`, but by one call; returns None where that cannot be done."""
        if not self._fast or not serialized:
            return None
        form = self._form
        self._layout = self._layout or _Layout.of(serialized[0], form)
        if self._layout is None:
            return None
        try:
            parsed = self._layout.parse(serialized)
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
            # The second where TensorFlow's message quotes bytes of a record that is no example.
            self._layout = None
            return None
        inputs = _inputs(parsed, form)
        ids = self._ids(offsets) if form.id_key is None else _usable_ids(parsed[form.id_key])
        if inputs is None or ids is None or ids.itemsize > LONGEST_ID:
            return None
        return ExampleBatch(
            self._file,
            ids,
            np.array(offsets, np.int64),
            digests(serialized),
            {},
            inputs,
            parsed[form.label_key].astype(np.float64) if form.labelled else None,
            [],
        )

    def _ids(self, offsets: Sequence[int]) -> np.ndarray:
        name = self._file.name.encode()
        return id_array([b"%s#%d" % (name, offset) for offset in offsets])

    def _parse_singly(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch:
        form, file = self._form, self._file

        def parse(record: bytes, offset: int) -> ParsedExample | Reject:
            return parse_example(record, file.name, offset, file.path, form)

        # Decoding an image releases the interpreter lock. A user's function need not be ready for
        # threads.
        outcomes = list(
            map(parse, serialized, offsets)
            if form.parse_fn
            else _threads().map(parse, serialized, offsets)
        )
        indices = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, ParsedExample)]
        examples = [outcome for outcome in outcomes if isinstance(outcome, ParsedExample)]
        labels = np.array([example.label for example in examples]) if form.labelled else None
        return ExampleBatch(
            file,
            id_array([example.example_id.encode() for example in examples]),
            np.array([offsets[i] for i in indices], np.int64),
            digests([serialized[i] for i in indices]),
            {
                key: [
                    example.kept[key].SerializeToString(deterministic=True) for example in examples
                ]
                for key in form.keep_keys
            },
            _stack_inputs(examples, form),
            None if labels is None else labels.reshape(len(examples), form.label_width),
            [outcome for outcome in outcomes if isinstance(outcome, Reject)],
        )


class _Layout:
    """A layout that records have in common: by key the shape of its values, and their dtype."""

    def __init__(self, features: Mapping[str, tuple[tuple[int, ...], tf.DType]]) -> None:
        self._keys = sorted(features)
        with tf.device("/CPU:0"):
            nothing = tf.constant([], tf.string)
            # The operation itself: to make its arguments anew, as `tf.io.parse_example` does, takes
            # as long as parsing a batch.
            self._parse = functools.partial(
                tf.raw_ops.ParseExampleV2,
                names=nothing,
                sparse_keys=nothing,
                dense_keys=tf.constant(self._keys, tf.string),
                ragged_keys=nothing,
                dense_defaults=[tf.constant([], features[key][1]) for key in self._keys],
                num_sparse=0,
                sparse_types=[],
                ragged_value_types=[],
                ragged_split_types=[],
                dense_shapes=[features[key][0] for key in self._keys],
            )

    @staticmethod
    def of(serialized: bytes, form: ExampleFormat) -> _Layout | None:
        """Returns a record's layout, or None where TensorFlow's batch parser cannot serve."""
        try:
            features = tf.train.Example.FromString(serialized).features.feature
        except Exception:
            return None
        shapes: dict[str, tuple[int, ...]] = {
            spec.key: (math.prod(spec.shape),) for spec in form.inputs
        }
        if form.labelled:
            shapes[form.label_key] = (form.label_width,)
        if form.id_key is not None:
            shapes[form.id_key] = ()
        if len(shapes) < len(form.inputs) + form.labelled + (form.id_key is not None):
            # A key in two roles, say id and label, is left to the parser of single records.
            return None
        dtypes = {key: _dtype(features[key]) if key in features else None for key in shapes}
        for key, dtype in dtypes.items():
            usable = (tf.string, tf.int64) if key == form.id_key else (tf.float32, tf.int64)
            if dtype not in usable:
                return None
        return _Layout({key: (shape, dtypes[key]) for key, shape in shapes.items()})

    def parse(self, serialized: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Returns the values of n records, [n, …] by key.

        Raises:
            tf.errors.InvalidArgumentError, UnicodeDecodeError: a record has another layout.
        """
        if not self._keys:
            # Where only offsets are needed, as in ids, there is nothing to parse.
            return {}
        with tf.device("/CPU:0"):
            values = self._parse(serialized=tf.constant(serialized, tf.string)).dense_values
        # Views of TensorFlow's memory, except of strings.
        return {key: np.asarray(value) for key, value in zip(self._keys, values, strict=True)}


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "parse")


def _dtype(feature: tf.train.Feature) -> tf.DType | None:
    kinds = {"float_list": tf.float32, "int64_list": tf.int64, "bytes_list": tf.string}
    return kinds.get(str(feature.WhichOneof("kind")))


def _inputs(parsed: Mapping[str, np.ndarray], form: ExampleFormat) -> tuple[np.ndarray, ...] | None:
    """Returns the model's inputs [n, …], or None where a number cannot be used."""
    inputs = []
    for spec in form.inputs:
        array = parsed[spec.key]
        cast = cast_exactly(array, spec)
        if cast is None or not np.isfinite(array).all():
            return None
        inputs.append(cast.reshape(-1, *spec.shape))
    return tuple(inputs)


def _stack_inputs(examples: Sequence[ParsedExample], form: ExampleFormat) -> tuple[np.ndarray, ...]:
    """Returns the inputs of parsed examples as batches [n, …] of the model's dtypes."""
    return tuple(
        np.stack([example.inputs[j] for example in examples])
        if examples
        else np.empty((0, *spec.shape), spec.dtype)
        for j, spec in enumerate(form.inputs)
    )


def _serialize_kept(examples: Sequence[ParsedExample], key: str) -> list[bytes]:
    return [example.kept[key].SerializeToString(deterministic=True) for example in examples]


def _usable_ids(ids: np.ndarray) -> np.ndarray | None:
    """Returns integers or byte strings [n] as ids (dtype S), or None where one cannot be used."""
    if ids.dtype == np.int64:
        return id_array(list(map(b"%d".__mod__, ids.tolist())))
    raw = ids.tolist()
    try:
        # All at once, separated by the character that no id may hold.
        parts = b"\0".join(raw).decode().split("\0")
    except UnicodeDecodeError:
        return None
    return id_array(raw) if len(parts) == len(raw) and all(raw) else None
