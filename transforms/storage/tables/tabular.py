"""Columns and rows of result files: labels and ids as Arrow arrays, tables as lines of JSON."""

from __future__ import annotations

import numpy as np
import orjson
import pyarrow as pa

from transforms.core.features import NO_LABEL


def label_type(task: str, outputs: int) -> pa.DataType:
    """Returns the Parquet type of labels: an integer, a number, or a list of them."""
    if task in ("class", "binary"):
        return pa.int64()
    if task == "multilabel":
        return pa.list_(pa.int64())
    return pa.float64() if outputs == 1 else pa.list_(pa.float64())


def string_array(ids: np.ndarray) -> pa.Array:
    """Returns ids [n] of dtype S as strings."""
    return pa.array(ids.tolist(), pa.binary()).cast(pa.string())


def label_array(labels: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Returns labels [n, L] as values of a `label_type`."""
    if not pa.types.is_list(kind):
        return pa.array(labels[:, 0]).cast(kind)
    if labels.dtype.kind == "f":
        offsets = np.arange(0, labels.size + 1, max(1, labels.shape[1]), dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(labels.reshape(-1)), type=kind)
    present = labels != NO_LABEL
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(labels[present]), type=kind)


def to_jsonl(table: pa.Table) -> bytes:
    """Returns a table as lines of JSON, with the shortest digits that read as the same float64."""
    return b"".join(
        orjson.dumps(row) + b"\n"
        for batch in table.to_batches(max_chunksize=500)
        for row in batch.to_pylist()
    )
