"""Examples: files of `tf.train.Example`, or of rows that become such, read into fixed-size batches of arrays, with everything unusable set
aside.

A batch is parsed at once by TensorFlow's parser. Where that refuses, or an image has to be decoded, its records are parsed one by one
by `parse_example`, which says what is wrong with which; both give the same arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import apache_beam as beam
import numpy as np
import tensorflow as tf

from transforms import counting, files, rejects
from transforms.errors import InputError
from transforms.overlap import prefetch
from transforms.records import FIELDS
from transforms.rejects import Reject
from transforms.tables import ARCHIVE_MAGIC, PARQUET_MAGIC, read_archive, read_parquet
from transforms.tfrecords import Frame, UnreadableTail, read_frames

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
        example_ids: [n] ids.
        offsets: [n] record indices in the file.
        digests: [n] BLAKE2b digests of the serialized examples.
        kept: [n] kept keys.
        inputs: an array [n, …] for each input of the model.
        labels: [n, label_width] float64, or None where labels are not read.
        rejects: what was set aside since the batch before.
        first, last: whether the file begins, or ends, with this batch.
        bytes_read: how far the stored file was read for this batch, in bytes since the batch before.
    """

    file: InputFile
    example_ids: list[str]
    offsets: list[int]
    digests: list[bytes]
    kept: list[Mapping[str, tf.train.Feature]]
    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    rejects: list[Reject]
    first: bool = False
    last: bool = False
    bytes_read: int = 0

    def take(self, rows: Sequence[int]) -> ExampleBatch:
        """The batch with these of its examples alone."""
        return dataclasses.replace(
            self,
            example_ids=[self.example_ids[i] for i in rows],
            offsets=[self.offsets[i] for i in rows],
            digests=[self.digests[i] for i in rows],
            kept=[self.kept[i] for i in rows],
            inputs=tuple(array[rows] for array in self.inputs),
            labels=None if self.labels is None else self.labels[rows],
        )


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
        self._guess: dict[str, tf.io.FixedLenFeature] | None = None
        self._fast = not form.parse_fn and not form.keep_keys

    def parse(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch:
        """Parses the records at `offsets` of the file; the batch's rejects are what is wrong among them."""
        batch = self._parse_at_once(serialized, offsets) if self._fast and serialized else None
        return batch or self._parse_singly(serialized, offsets)

    def _parse_at_once(self, serialized: Sequence[bytes], offsets: Sequence[int]) -> ExampleBatch | None:
        self._guess = self._guess or self._layout(serialized[0])
        if self._guess is None:
            return None
        form = self._form
        try:
            with tf.device("/CPU:0"):
                # Where only places are asked for, as ids, there is nothing to parse.
                parsed = tf.io.parse_example(tf.constant(serialized, tf.string), self._guess) if self._guess else {}
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
            # The second where TensorFlow's message quotes bytes of a record that is no example.
            self._guess = None
            return None
        arrays = [parsed[spec.key].numpy() for spec in form.inputs]
        inputs = [_cast(array, spec) for array, spec in zip(arrays, form.inputs, strict=True)]
        if any(array is None for array in inputs) or not all(np.isfinite(array).all() for array in arrays):
            return None
        if form.id_key is None:
            ids = [f"{self._file.name}#{offset}" for offset in offsets]
            longest = len(ids[-1].encode())
        elif (given := parsed[form.id_key].numpy()).dtype == np.int64:
            ids, longest = list(map(str, given.tolist())), 0
        else:
            raw = given.tolist()
            try:
                # All at once, with what no id may hold between them.
                ids, longest = b"\0".join(raw).decode().split("\0"), max(map(len, raw))
            except UnicodeDecodeError:
                return None
        if len(ids) != len(offsets) or not all(ids) or longest > _LONGEST_ID:
            return None
        return ExampleBatch(
            self._file,
            ids,
            list(offsets),
            [digest(record) for record in serialized],
            [{} for _ in ids],
            tuple(array.reshape(-1, *spec.shape) for array, spec in zip(inputs, form.inputs, strict=True) if array is not None),
            parsed[form.label_key].numpy().astype(np.float64) if form.labelled else None,
            [],
        )

    def _layout(self, serialized: bytes) -> dict[str, tf.io.FixedLenFeature] | None:
        """The features of a record as TensorFlow's batch parser wants them, or None where it cannot serve."""
        try:
            features = tf.train.Example.FromString(serialized).features.feature
        except Exception:
            return None
        form, layout = self._form, {}
        sizes: dict[str, list[int]] = {spec.key: [math.prod(spec.shape)] for spec in form.inputs}
        if form.labelled:
            sizes[form.label_key] = [form.label_width]
        if form.id_key is not None:
            sizes[form.id_key] = []
        for key, size in sizes.items():
            kind = str(features[key].WhichOneof("kind")) if key in features else "missing"
            dtype = {"float_list": tf.float32, "int64_list": tf.int64, "bytes_list": tf.string}.get(kind)
            if dtype is None or dtype not in ((tf.string, tf.int64) if key == form.id_key else (tf.float32, tf.int64)):
                return None
            layout[key] = tf.io.FixedLenFeature(size, dtype)
        # A key in two roles, say id and label, is left to the parser of single records.
        return layout if len(layout) == len(form.inputs) + form.labelled + (form.id_key is not None) else None

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
            [example.example_id for _, example in good],
            [offsets[i] for i, _ in good],
            [digest(serialized[i]) for i, _ in good],
            [example.kept for _, example in good],
            inputs,
            labels,
            [outcome for outcome in outcomes if isinstance(outcome, Reject)],
        )


def digest(serialized: bytes) -> bytes:
    """The content digest of a serialized example: BLAKE2b, 16 bytes."""
    return hashlib.blake2b(serialized, digest_size=16).digest()


def _records(stream: IO[bytes]) -> Iterator[Frame]:
    """The records of a file, whose kind its first bytes tell."""
    head = stream.read(4)
    stream.seek(0)
    return {PARQUET_MAGIC: read_parquet, ARCHIVE_MAGIC: read_archive}.get(head, read_frames)(stream)


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

        frames = _records(stream)
        while True:
            try:
                frame = next(frames, None)
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
                frame = None
            if frame is None:
                yield batch(last=True)
                return
            if frame.payload is None:
                aside.append(Reject(file.path, frame.index, None, rejects.BAD_CHECKSUM, "the record's checksum does not match its content"))
                continue
            if frame.index in known:
                continue
            if len(serialized) == batch_size:
                yield batch(last=False)
            serialized.append(frame.payload)
            offsets.append(frame.index)


def records_at(path: str, offsets: Collection[int]) -> dict[int, bytes]:
    """The readable records of a file at some places, by place."""
    found: dict[int, bytes] = {}
    last = max(offsets, default=-1)
    with files.open_raw(path) as stream, contextlib.suppress(UnreadableTail):
        for frame in _records(stream):
            if frame.payload is not None and frame.index in offsets:
                found[frame.index] = frame.payload
            if frame.index >= last:
                break
    return found


def first_records(file: InputFile, n: int) -> list[bytes]:
    """The first readable records of a file, at most n."""
    found: list[bytes] = []
    with files.open_raw(file.path) as stream, contextlib.suppress(UnreadableTail):
        for frame in _records(stream):
            if frame.payload is not None:
                found.append(frame.payload)
            if len(found) == n:
                break
    return found


@dataclasses.dataclass
class ReadExamples(beam.PTransform):
    """Reads files of examples as batches, file by file: InputFile → ExampleBatch."""

    form: ExampleFormat
    batch_size: int
    allow_truncated: bool = False

    def _read(self, file: InputFile) -> Iterator[ExampleBatch]:
        for batch in prefetch(read_examples(file, self.form, self.batch_size, self.allow_truncated)):
            counting.add("examples-read", len(batch.example_ids) + len(batch.rejects))
            counting.add("example-bytes-read", batch.bytes_read)
            yield batch

    def expand(self, input_files: beam.PCollection) -> beam.PCollection:
        return input_files | "ReadFiles" >> beam.FlatMap(self._read)  # ExampleBatch
