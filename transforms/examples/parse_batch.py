"""Batches of serialized examples into arrays at once, by TensorFlow's parser."""

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
from transforms.examples.parse_record import LONGEST_ID, cast_exactly, parse_example
from transforms.examples.rejects import Reject


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "parse")


class BatchParser:
    """Parses many records of a file at once; keeps the layout that the first good record had as its
    guess for the next ones.
    """

    def __init__(self, form: ExampleFormat, file: InputFile) -> None:
        self._form = form
        self._file = file
        self._guess: _Layout | None = None
        self._fast = not form.parse_fn and not form.keep_keys

    def parse(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch:
        """Parses the records at `offsets` of the file; the batch's rejects are what is wrong among
        them.
        """
        batch = self._parse_at_once(serialized, offsets) if self._fast and serialized else None
        return self._parse_singly(serialized, offsets) if batch is None else batch

    def _parse_at_once(
        self, serialized: Sequence[bytes], offsets: Sequence[int]
    ) -> ExampleBatch | None:
        self._guess = self._guess or self._layout(serialized[0])
        if self._guess is None:
            return None
        form = self._form
        try:
            parsed = self._guess.parse(serialized)
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
            # The second where TensorFlow's message quotes bytes of a record that is no example.
            self._guess = None
            return None
        arrays = [parsed[spec.key] for spec in form.inputs]
        inputs = [
            cast_exactly(array, spec) for array, spec in zip(arrays, form.inputs, strict=True)
        ]
        if any(array is None for array in inputs) or not all(
            np.isfinite(array).all() for array in arrays
        ):
            return None
        ids = self._ids(offsets) if form.id_key is None else _usable_ids(parsed[form.id_key])
        if ids is None or ids.itemsize > LONGEST_ID:
            return None
        return ExampleBatch(
            self._file,
            ids,
            np.array(offsets, np.int64),
            digests(serialized),
            {},
            tuple(
                array.reshape(-1, *spec.shape)
                for array, spec in zip(inputs, form.inputs, strict=True)
                if array is not None
            ),
            parsed[form.label_key].astype(np.float64) if form.labelled else None,
            [],
        )

    def _ids(self, offsets: Sequence[int]) -> np.ndarray:
        name = self._file.name.encode()
        return id_array([b"%s#%d" % (name, offset) for offset in offsets])

    def _layout(self, serialized: bytes) -> _Layout | None:
        """How a record is laid out, or None where TensorFlow's batch parser cannot serve."""
        try:
            features = tf.train.Example.FromString(serialized).features.feature
        except Exception:
            return None
        form = self._form
        layout: dict[str, tuple[tuple[int, ...], tf.DType]] = {}
        sizes: dict[str, tuple[int, ...]] = {
            spec.key: (math.prod(spec.shape),) for spec in form.inputs
        }
        if form.labelled:
            sizes[form.label_key] = (form.label_width,)
        if form.id_key is not None:
            sizes[form.id_key] = ()
        for key, size in sizes.items():
            kind = str(features[key].WhichOneof("kind")) if key in features else "missing"
            dtype = {"float_list": tf.float32, "int64_list": tf.int64, "bytes_list": tf.string}.get(
                kind
            )
            if dtype is None or dtype not in (
                (tf.string, tf.int64) if key == form.id_key else (tf.float32, tf.int64)
            ):
                return None
            layout[key] = size, dtype
        # A key in two roles, say id and label, is left to the parser of single records.
        return (
            _Layout(layout)
            if len(layout) == len(form.inputs) + form.labelled + (form.id_key is not None)
            else None
        )

    def _parse_singly(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch:
        form, file = self._form, self._file

        def parse(record: bytes, offset: int) -> ParsedExample | Reject:
            return parse_example(record, file.name, offset, file.path, form)

        # Decoding an image releases the interpreter lock; a user's function need not be ready for
        # threads.
        outcomes = list(
            map(parse, serialized, offsets)
            if form.parse_fn
            else _threads().map(parse, serialized, offsets)
        )
        good = [
            (i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, ParsedExample)
        ]
        inputs = tuple(
            np.stack([example.inputs[j] for _, example in good])
            if good
            else np.empty((0, *spec.shape), spec.dtype)
            for j, spec in enumerate(form.inputs)
        )
        labels = (
            np.array([example.label for _, example in good]).reshape(len(good), form.label_width)
            if form.labelled
            else None
        )
        return ExampleBatch(
            file,
            id_array([example.example_id.encode() for _, example in good]),
            np.array([offsets[i] for i, _ in good], np.int64),
            digests([serialized[i] for i, _ in good]),
            {
                key: [
                    example.kept[key].SerializeToString(deterministic=True) for _, example in good
                ]
                for key in form.keep_keys
            },
            inputs,
            labels,
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

    def parse(self, serialized: Sequence[bytes]) -> dict[str, np.ndarray]:
        """The values of n records, [n, …] by key.

        Raises:
            tf.errors.InvalidArgumentError, UnicodeDecodeError: one of them is laid out otherwise.
        """
        if not self._keys:
            # Where only places are asked for, as ids, there is nothing to parse.
            return {}
        with tf.device("/CPU:0"):
            values = self._parse(serialized=tf.constant(serialized, tf.string)).dense_values
        # Views of TensorFlow's memory, except of strings.
        return {key: np.asarray(value) for key, value in zip(self._keys, values, strict=True)}


def _usable_ids(given: np.ndarray) -> np.ndarray | None:
    """Ids [n] as byte strings, of integers or byte strings; None where some may not be used."""
    if given.dtype == np.int64:
        return id_array(list(map(b"%d".__mod__, given.tolist())))
    raw = given.tolist()
    try:
        # All at once, with what no id may hold between them.
        parts = b"\0".join(raw).decode().split("\0")
    except UnicodeDecodeError:
        return None
    return id_array(raw) if len(parts) == len(raw) and all(raw) else None
