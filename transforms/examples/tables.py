"""Rows of Parquet files and NumPy archives as examples: each row becomes the `tf.train.Example`
with its columns as keys.

So ids, digests and rejects treat them as records of a TFRecord file. Whole numbers and truth values
become int64, other numbers float32, text and bytes stay; lists are flattened. A dictionary of an
image's bytes and path, as many data sets hold images, becomes the bytes. A value that is missing,
or of another type, is no key of its example.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from transforms.storage.records.example_wire import float_list
from transforms.storage.records.tfrecords import UnreadableTail

# The first bytes of these files.
PARQUET_MAGIC, ARCHIVE_MAGIC = b"PAR1", b"PK\x03\x04"

# Rows that become Python objects at once: few, since a row may be an image.
_ROWS = 64

# What Arrow, NumPy and zipfile raise for a damaged file.
_READ_ERRORS = (pa.ArrowException, OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


def read_parquet(stream: IO[bytes]) -> Iterator[list[bytes | None]]:
    """Yields the rows of a Parquet file as serialized examples, each in a list of its own.

    Args:
        stream: the file, which can seek.

    Raises:
        UnreadableTail: the file is damaged from some row on.
    """

    def rows() -> Iterator[Mapping[str, Any]]:
        file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        for batch in file.iter_batches(_ROWS):
            for values in zip(*map(_values, batch.columns), strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))

    return _examples(rows, stream)


def read_archive(stream: IO[bytes]) -> Iterator[list[bytes | None]]:
    """Yields the rows of a NumPy archive (`.npz`) as serialized examples, each in a list of its
    own. An example holds a row of each array.

    Args:
        stream: the file, which can seek.

    Raises:
        UnreadableTail: the file is damaged, holds pickled objects, or its arrays differ in length.
    """

    def rows() -> Iterator[Mapping[str, Any]]:
        with np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len({*lengths.values()}) > 1 or 0 in {array.ndim for array in arrays.values()}:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(
                f"its arrays have different lengths: {shapes}; expected a row of each for every "
                "example"
            )
        for i in range(min(lengths.values(), default=0)):
            yield {name: array[i] for name, array in arrays.items()}

    return _examples(rows, stream)


def _examples(
    rows: Callable[[], Iterator[Mapping[str, Any]]], stream: IO[bytes]
) -> Iterator[list[bytes | None]]:
    """Yields rows as serialized examples; what goes wrong in `rows` ends the file."""
    index = 0
    try:
        for row in rows():
            features = {
                key: feature
                for key, value in row.items()
                if (feature := _feature(value)) is not None
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            yield [example.SerializeToString(deterministic=True)]
            index += 1
    except _READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableTail(index, stream.tell(), reason) from error


def _values(column: pa.Array) -> Iterable[Any]:
    """Returns a column's values, lists of numbers as arrays, which are made much faster."""
    kinds = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    is_list = any(is_kind(column.type) for is_kind in kinds)
    numbers = is_list and pa.types.is_primitive(column.type.value_type)
    if numbers and not column.flatten().null_count:
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


def _feature(value: Any) -> tf.train.Feature | None:
    """Returns a value of a row as a feature, or None where an example cannot hold it."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, (str, bytes)):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(part, (str, bytes)) for part in value):
        texts = [part.encode() if isinstance(part, str) else part for part in value]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))
    try:
        array = np.asarray(value)
    except ValueError:
        # Lists of different lengths.
        return None
    if array.dtype.kind in "SU":
        return _feature(array.ravel().tolist())
    fits = array.dtype.kind != "u" or not array.size or array.max() < 1 << 63
    if array.dtype.kind in "iub" and fits:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=array.ravel().astype(np.int64)))
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return tf.train.Feature(float_list=tf.train.FloatList.FromString(float_list(array)))
    return None
