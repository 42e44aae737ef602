"""Rows of Parquet files and NumPy archives as examples: each row becomes the `tf.train.Example`
with its columns as keys.

So whatever follows, ids, digests, rejects, treats them as records of a TFRecord file. Whole numbers
and truth values become int64, other numbers float32, text and bytes stay; lists are flattened. A
dictionary of an image's bytes and path, as many data sets hold images, is its bytes. What is
missing in a row, or of another type, is no key of its example.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from transforms.storage.example_wire import float_list
from transforms.storage.tfrecords import UnreadableTail

PARQUET_MAGIC, ARCHIVE_MAGIC = b"PAR1", b"PK\x03\x04"

# Rows that are turned into Python's objects at once; a row may be an image.
_ROWS = 64


def read_parquet(stream: IO[bytes]) -> Iterator[list[bytes | None]]:
    """The rows of a Parquet file, from a stream that seeks.

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
    """The rows of a NumPy archive (`.npz`), from a stream that seeks: arrays of one length, with a
    row of each in an example.

    Raises:
        UnreadableTail: the file is damaged, holds pickled objects, or its arrays differ in length.
    """

    def rows() -> Iterator[Mapping[str, Any]]:
        with np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len({*lengths.values()}) > 1 or 0 in {array.ndim for array in arrays.values()}:
            told = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(
                f"its arrays have different lengths: {told}; expected a row of each for every "
                "example"
            )
        for i in range(min(lengths.values(), default=0)):
            yield {name: array[i] for name, array in arrays.items()}

    return _examples(rows, stream)


def _examples(
    rows: Callable[[], Iterator[Mapping[str, Any]]], stream: IO[bytes]
) -> Iterator[list[bytes | None]]:
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
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
    ) as error:
        raise UnreadableTail(
            index, stream.tell(), str(error).splitlines()[0] if str(error) else type(error).__name__
        ) from error


def _values(column: pa.Array) -> Iterable[Any]:
    """A column's values, lists of numbers as arrays, which are made much faster."""
    lists = any(
        is_one(column.type)
        for is_one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    numbers = lists and pa.types.is_primitive(column.type.value_type)
    if numbers and not column.flatten().null_count:
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


def _feature(value: Any) -> tf.train.Feature | None:
    """A column's value in a row, or None where an example cannot hold it."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, (str, bytes)):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(one, (str, bytes)) for one in value):
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(
                value=[one.encode() if isinstance(one, str) else one for one in value]
            )
        )
    try:
        array = np.asarray(value)
    except ValueError:
        # Lists of different lengths.
        return None
    if array.dtype.kind in "SU":
        return _feature(array.ravel().tolist())
    if array.dtype.kind in "iub" and (
        array.dtype.kind != "u" or not array.size or array.max() < 1 << 63
    ):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=array.ravel().astype(np.int64)))
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return tf.train.Feature(float_list=tf.train.FloatList.FromString(float_list(array)))
    return None
