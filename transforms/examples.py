"""Examples: files of `tf.train.Example`, or of rows that become such, read into fixed-size batches of arrays, with everything unusable set
aside.

A batch is parsed at once by TensorFlow's parser. Where that refuses, or an image has to be decoded, its records are parsed one by one
by `parse_example`, which says what is wrong with which; both give the same arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import IO, Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import xxhash

from transforms import counting, files, rejects
from transforms.errors import InputError
from transforms.overlap import prefetch
from transforms.records import FIELDS, id_array
from transforms.rejects import Reject
from transforms.tables import ARCHIVE_MAGIC, PARQUET_MAGIC, read_archive, read_parquet
from transforms.tfrecords import UnreadableTail, read_frames

# Ids are held in arrays as wide as the longest.
_LONGEST_ID = 512
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input of the model: the key that holds it, its shape without the batch dimension, and its dtype's name."""

    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class ExampleFormat:
    """Where an example's parts are found.

    Attributes:
        inputs: the model's inputs, in its order.
        label_key: key of the label; unused where `labelled` is false.
        label_width: how many numbers a label has: 1, or C for one number per output.
        labelled: whether labels are read; they are not where the model's prediction serves as label.
        id_key: key of the id, at most 512 bytes; or None for `<file>#<index>`.
        keep_keys: keys that are copied into the feature record.
        parse_fn: `module:function` that turns a serialized record into a mapping of the keys above, or None for `tf.train.Example`.
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
            raise InputError(f"--keep_keys: {', '.join(clash)} would overwrite a field of the feature record: keep another key")


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of examples.

    Attributes:
        index: its place in the data set's order.
        path: where it is.
        name: the stem of ids.
        size: in bytes, as stored.
        known: [n] indices of records that are passed over, because their features are there already; or None.
    """

    index: int
    path: str
    name: str
    size: int
    known: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class ParsedExample:
    """One example: its id, its inputs as arrays of the model's shapes, its label [label_width] float64 or None, and the kept keys."""

    example_id: str
    inputs: tuple[np.ndarray, ...]
    label: np.ndarray | None
    kept: Mapping[str, tf.train.Feature]


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleBatch:
    """Up to a batch of examples of one file, in order, and what was set aside among them.

    Attributes:
        file: where they come from.
        example_ids: [n] byte strings (dtype S), UTF-8.
        offsets: [n] int64, record indices in the file.
        digests: [n, 16] uint8, content digests of the serialized examples.
        kept: by kept key the serialized `tf.train.Feature` of each, [n].
        inputs: an array [n, …] for each input of the model.
        labels: [n, label_width] float64, or None where labels are not read.
        rejects: what was set aside since the batch before.
        first, last: whether the file begins, or ends, with this batch.
        bytes_read: how far the stored file was read for this batch, in bytes since the batch before.
    """

    file: InputFile
    example_ids: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray
    kept: Mapping[str, Sequence[bytes]]
    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    rejects: list[Reject]
    first: bool = False
    last: bool = False
    bytes_read: int = 0

    def __len__(self) -> int:
        return len(self.example_ids)

    def take(self, rows: np.ndarray) -> ExampleBatch:
        """The batch with these of its examples alone."""
        return dataclasses.replace(
            self,
            example_ids=self.example_ids[rows],
            offsets=self.offsets[rows],
            digests=self.digests[rows],
            kept=take_kept(self.kept, rows),
            inputs=tuple(array[rows] for array in self.inputs),
            labels=None if self.labels is None else self.labels[rows],
        )


def take_kept(kept: Mapping[str, Sequence[bytes]], rows: np.ndarray) -> Mapping[str, Sequence[bytes]]:
    """What is kept of these rows alone."""
    return {key: [features[row] for row in rows.tolist()] for key, features in kept.items()}


class _Unusable(Exception):
    def __init__(self, reason: str, detail: str, example_id: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.example_id = example_id


def parse_example(serialized: bytes, name: str, offset: int, source: str, form: ExampleFormat) -> ParsedExample | Reject:
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
            raise _Unusable(rejects.MISSING_KEY, f"no key {missing[0]!r} to keep; keys: {_keys(values)}")
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
            raise _Unusable(rejects.PARSE_FN_FAILED, f"{form.parse_fn} raised {type(error).__name__}: {error}") from error
        if not isinstance(values, Mapping):
            raise _Unusable(
                rejects.PARSE_FN_FAILED, f"{form.parse_fn} returned {type(values).__name__}, expected a mapping of keys to values"
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
    """The value under `key`: an array for number lists, bytes for a bytes list of one; what a parsing function returned as it is."""
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
    raise _Unusable(rejects.WRONG_TYPE, f"key {key!r} is {'a list of several byte strings' if kind else 'empty'}")


def _id(values: Mapping[str, Any], name: str, offset: int, form: ExampleFormat) -> str:
    found = f"{name}#{offset}" if form.id_key is None else _given_id(values, form.id_key)
    if len(found.encode()) > _LONGEST_ID:
        raise _Unusable(rejects.BAD_ID, f"the id has {len(found.encode())} bytes, expected at most {_LONGEST_ID}")
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
            rejects.WRONG_SIZE, f"key {spec.key!r} has {array.size} numbers of shape {array.shape}, the model's input has {spec.shape}"
        )
    if not np.isfinite(array).all():
        raise _Unusable(rejects.NON_FINITE_INPUT, f"key {spec.key!r} holds a NaN or an infinity")
    cast = _cast(array, spec)
    if cast is None:
        raise _Unusable(rejects.WRONG_TYPE, f"key {spec.key!r} holds numbers that the model's input of type {spec.dtype} cannot hold")
    return cast.reshape(spec.shape)


def _is_shaped(array: np.ndarray, spec: InputSpec) -> bool:
    """Whether an array that has a shape of its own has the input's; as many numbers in another shape are another image."""
    if array.ndim < 2 or len(spec.shape) < 2:
        return True
    return [n for n in array.shape if n != 1] == [n for n in spec.shape if n != 1]


def _cast(array: np.ndarray, spec: InputSpec) -> np.ndarray | None:
    """An array in the input's dtype, or None where an integer dtype would change a number."""
    with np.errstate(invalid="ignore"):
        cast = array.astype(spec.dtype, copy=False)
    return cast if cast.dtype.kind not in "iu" or np.array_equal(cast, array) else None


def _image(data: bytes, spec: InputSpec) -> np.ndarray:
    if not data.startswith((_JPEG, _PNG)):
        raise _Unusable(
            rejects.BAD_IMAGE, f"key {spec.key!r} is {len(data)} bytes that are neither PNG nor JPEG: decode them with --parse_fn"
        )
    channels = spec.shape[-1] if len(spec.shape) == 3 and spec.shape[-1] in (1, 3, 4) else 0
    try:
        with tf.device("/CPU:0"):
            return tf.io.decode_image(data, channels=channels, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        raise _Unusable(rejects.BAD_IMAGE, f"key {spec.key!r} cannot be decoded: {str(error.message).splitlines()[0]}") from error


def _label(values: Mapping[str, Any], form: ExampleFormat) -> np.ndarray:
    value = _value(values, form.label_key)
    try:
        label = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise _Unusable(rejects.WRONG_TYPE, f"the label under {form.label_key!r} is not numbers") from error
    if label.size != form.label_width:
        raise _Unusable(
            rejects.WRONG_SIZE, f"the label under {form.label_key!r} has {label.size} numbers, the loss takes {form.label_width}"
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


@functools.cache
def resolve_function(name: str, flag: str) -> Callable[..., Any]:
    """The function that `module:function` names; `flag` names the option in messages."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"--{flag}={name!r} cannot be imported ({error}): expected module:function on the Python path of every worker"
        ) from error
    if not callable(function):
        raise InputError(f"--{flag}={name!r} is not a function")
    return function


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "parse")


class BatchParser:
    """Parses many records of a file at once; keeps the layout that the first good record had as its guess for the next ones."""

    def __init__(self, form: ExampleFormat, file: InputFile) -> None:
        self._form = form
        self._file = file
        self._guess: _Layout | None = None
        self._fast = not form.parse_fn and not form.keep_keys

    def parse(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch:
        """Parses the records at `offsets` of the file; the batch's rejects are what is wrong among them."""
        batch = self._parse_at_once(serialized, offsets) if self._fast and serialized else None
        return self._parse_singly(serialized, offsets) if batch is None else batch

    def _parse_at_once(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch | None:
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
        inputs = [_cast(array, spec) for array, spec in zip(arrays, form.inputs, strict=True)]
        if any(array is None for array in inputs) or not all(np.isfinite(array).all() for array in arrays):
            return None
        ids = self._ids(offsets) if form.id_key is None else _usable_ids(parsed[form.id_key])
        if ids is None or ids.itemsize > _LONGEST_ID:
            return None
        return ExampleBatch(
            self._file,
            ids,
            np.array(offsets, np.int64),
            digests(serialized),
            {},
            tuple(array.reshape(-1, *spec.shape) for array, spec in zip(inputs, form.inputs, strict=True) if array is not None),
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
        sizes: dict[str, tuple[int, ...]] = {spec.key: (math.prod(spec.shape),) for spec in form.inputs}
        if form.labelled:
            sizes[form.label_key] = (form.label_width,)
        if form.id_key is not None:
            sizes[form.id_key] = ()
        for key, size in sizes.items():
            kind = str(features[key].WhichOneof("kind")) if key in features else "missing"
            dtype = {"float_list": tf.float32, "int64_list": tf.int64, "bytes_list": tf.string}.get(kind)
            if dtype is None or dtype not in ((tf.string, tf.int64) if key == form.id_key else (tf.float32, tf.int64)):
                return None
            layout[key] = size, dtype
        # A key in two roles, say id and label, is left to the parser of single records.
        return _Layout(layout) if len(layout) == len(form.inputs) + form.labelled + (form.id_key is not None) else None

    def _parse_singly(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch:
        form, file = self._form, self._file

        def parse(record: bytes, offset: int) -> ParsedExample | Reject:
            return parse_example(record, file.name, offset, file.path, form)

        # Decoding an image releases the interpreter lock; a user's function need not be ready for threads.
        outcomes = list(map(parse, serialized, offsets) if form.parse_fn else _threads().map(parse, serialized, offsets))
        good = [(i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, ParsedExample)]
        inputs = tuple(
            np.stack([example.inputs[j] for _, example in good]) if good else np.empty((0, *spec.shape), spec.dtype)
            for j, spec in enumerate(form.inputs)
        )
        labels = np.array([example.label for _, example in good]).reshape(len(good), form.label_width) if form.labelled else None
        return ExampleBatch(
            file,
            id_array([example.example_id.encode() for _, example in good]),
            np.array([offsets[i] for i, _ in good], np.int64),
            digests([serialized[i] for i, _ in good]),
            {key: [example.kept[key].SerializeToString(deterministic=True) for _, example in good] for key in form.keep_keys},
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
            # The operation itself: to make its arguments anew, as `tf.io.parse_example` does, takes as long as parsing a batch.
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


def digest(serialized: bytes) -> bytes:
    """The content digest of a serialized example: XXH3, 128 bits.

    It tells apart what differs by accident; it is not made to withstand somebody who looks for two examples with one digest.
    """
    return xxhash.xxh3_128_digest(serialized)


def digests(serialized: Sequence[bytes]) -> np.ndarray:
    """The content digests of n serialized examples: [n, 16] uint8."""
    return np.frombuffer(b"".join(map(digest, serialized)), np.uint8).reshape(len(serialized), 16)


def _records(stream: IO[bytes]) -> Iterator[list[bytes | None]]:
    """The records of a file, whose kind its first bytes tell; None for one whose checksum is wrong."""
    head = stream.read(4)
    stream.seek(0)
    return {PARQUET_MAGIC: read_parquet, ARCHIVE_MAGIC: read_archive}.get(head, read_frames)(stream)


def _runs(payloads: list[bytes | None], start: int, known: Collection[int]) -> Iterator[tuple[list[Any], Sequence[int]]]:
    """Runs of records that are read, with their places, of which the first is `start`; a damaged one is by itself."""
    if not known and None not in payloads:
        yield payloads, range(start, start + len(payloads))
        return
    for place, payload in enumerate(payloads, start):
        if payload is None or place not in known:
            yield [payload], [place]


def read_examples(file: InputFile, form: ExampleFormat, batch_size: int, allow_truncated: bool) -> Iterator[ExampleBatch]:
    """Reads a file of examples as batches of `batch_size` records (fewer where some are set aside, and at the end).

    Raises:
        InputError: the file's tail cannot be read and `allow_truncated` is false.
    """
    parser = BatchParser(form, file)
    known = frozenset(() if file.known is None else file.known.tolist())
    serialized: list[bytes] = []
    offsets: list[int] = []
    aside: list[Reject] = []
    position, first = 0, True
    with files.open_raw(file.path) as stream:

        def batch(last: bool) -> ExampleBatch:
            nonlocal serialized, offsets, aside, position, first
            reached = file.size if last else stream.tell()
            parsed = parser.parse(serialized, offsets)
            found = sorted(aside + parsed.rejects, key=lambda reject: reject.offset)
            parsed = dataclasses.replace(parsed, rejects=found, first=first, last=last, bytes_read=reached - position)
            serialized, offsets, aside, position, first = [], [], [], reached, False
            return parsed

        reached = 0
        try:
            for payloads in _records(stream):
                for run, places in _runs(payloads, reached, known):
                    if run[0] is None:
                        detail = "the record's checksum does not match its content"
                        aside.append(Reject(file.path, places[0], None, rejects.BAD_CHECKSUM, detail))
                        continue
                    while run:
                        if len(serialized) == batch_size:
                            yield batch(last=False)
                        room = batch_size - len(serialized)
                        serialized += run[:room]
                        offsets += places[:room]
                        run, places = run[room:], places[room:]
                reached += len(payloads)
        except UnreadableTail as error:
            if not allow_truncated or error.is_no_record:
                hint = (
                    "is it a TFRecord, Parquet or .npz file?"
                    if error.is_no_record
                    else "write the file again, or accept the loss with --allow_truncated_files"
                )
                raise InputError(
                    f"{file.path}: the file cannot be read from record {error.index} at byte {error.offset} on ({error.reason}), "
                    f"and nobody knows how many records that is: {hint}"
                ) from error
            aside.append(Reject(file.path, error.index, None, rejects.UNREADABLE_TAIL, f"from byte {error.offset} on: {error.reason}"))
        yield batch(last=True)


def records_at(path: str, offsets: Collection[int]) -> dict[int, bytes]:
    """The readable records of a file at some places, by place."""
    last = max(offsets, default=-1)
    return {place: payload for place, payload in _readable(path, last + 1) if place in offsets}


def first_records(file: InputFile, n: int) -> list[bytes]:
    """The first readable records of a file, at most n."""
    return [payload for _, payload in islice(_readable(file.path), n)]


def _readable(path: str, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The readable records of a file, up to some place or all, with their places."""
    place = 0
    with files.open_raw(path) as stream, contextlib.suppress(UnreadableTail):
        for payloads in _records(stream):
            for payload in payloads:
                if place == stop:
                    return
                if payload is not None:
                    yield place, payload
                place += 1


@dataclasses.dataclass
class ReadExamples(beam.PTransform):
    """Reads files of examples as batches, file by file: InputFile → ExampleBatch."""

    form: ExampleFormat
    batch_size: int
    allow_truncated: bool = False

    def _read(self, file: InputFile) -> Iterator[ExampleBatch]:
        for batch in prefetch(read_examples(file, self.form, self.batch_size, self.allow_truncated)):
            counting.add("examples-read", len(batch) + len(batch.rejects))
            counting.add("example-bytes-read", batch.bytes_read)
            yield batch

    def expand(self, input_files: beam.PCollection) -> beam.PCollection:
        return input_files | "ReadFiles" >> beam.FlatMap(self._read)  # ExampleBatch
