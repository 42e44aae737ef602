"""Formats of files of vectors, which nearest-neighbour libraries read.

| format | files | content |
|---|---|---|
| `npy` | `vectors-SSSSS.npy`, `ids-SSSSS.npy` | float32 [n, d], and the ids as strings [n] |
| `parquet` | `vectors-SSSSS.parquet` | `example_id`, `label`, `vector`, a list of fixed size |
| `tfrecord` | `vectors-SSSSS.tfrecord` | `tf.train.Example` of `example_id`, `label` and \
`vector`, a float list |
| `faiss` | `vectors-SSSSS.faiss` | a flat inner-product index, whose numbers are rows of the set |
| `vertex` | `vectors-SSSSS.json` | lines for Vertex AI Vector Search: `id`, `embedding`, and the \
label as a restriction |
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.features import NO_LABEL, Features
from transforms.storage.records import example_wire, tfrecords
from transforms.storage.tables.tabular import label_array, string_array
from transforms.vectors import faiss_index

FORMATS = ("npy", "parquet", "tfrecord", "faiss", "vertex")


def render(
    kind: str, number: int, start: int, features: Features, vectors: np.ndarray, label: pa.DataType
) -> Iterator[tuple[str, bytes]]:
    """Yields the files of one format, (name, content), of vectors [n, d] float32.

    `number` is that of the range of rows and `start` its first row; `label` is the type of labels.
    """
    stem = f"vectors-{number:05d}"
    if kind == "npy":
        yield f"{stem}.npy", _npy(vectors)
        yield (
            f"ids-{number:05d}.npy",
            _npy(np.array([name.decode() for name in features.example_ids.tolist()])),
        )
    elif kind == "parquet":
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        columns = [string_array(features.example_ids), label_array(features.labels, label), fixed]
        buffer = io.BytesIO()
        # Floats of gradients do not compress, and dictionaries of them only take time.
        pq.write_table(
            pa.table(columns, ["example_id", "label", "vector"]),
            buffer,
            use_dictionary=False,
            compression="none",
        )
        yield f"{stem}.parquet", buffer.getvalue()
    elif kind == "tfrecord":
        yield (
            f"{stem}.tfrecord",
            tfrecords.join_frames(
                example_wire.encode_vectors(features.example_ids, features.labels, vectors)
            ),
        )
    elif kind == "faiss":
        faiss = faiss_index.require()
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(vectors, np.arange(start, start + len(vectors)))
        yield f"{stem}.faiss", faiss_index.to_bytes(index)
    else:
        yield f"{stem}.json", b"".join(_vertex_lines(features, vectors))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _vertex_lines(features: Features, vectors: np.ndarray) -> Iterator[bytes]:
    whole = np.issubdtype(features.labels.dtype, np.integer)
    for example_id, labels, vector in zip(
        features.example_ids.tolist(), features.labels.tolist(), vectors, strict=True
    ):
        line = {"id": example_id.decode(), "embedding": vector}
        if whole:
            line["restricts"] = [
                {
                    "namespace": "label",
                    "allow": [str(label) for label in labels if label != NO_LABEL],
                }
            ]
        else:
            line["numeric_restricts"] = [
                {"namespace": "label", "value_double": label} for label in labels
            ]
        yield orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
