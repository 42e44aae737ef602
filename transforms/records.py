"""The feature record: what stage 1 stores of an example and stage 2 reads, as arrays and as a serialized `tf.train.Example`.

| field | type | content |
|---|---|---|
| `example_id` | bytes | the example's id, UTF-8 |
| `source`, `offset` | bytes, int64 | the file it came from and its record index there |
| `content_digest` | bytes | XXH3, 128 bits, of the serialized example |
| `label`, `prediction` | int64 or float list | by task: class index; 0 or 1; indices of the active outputs; values of a regression |
| `probability` | float | of the last checkpoint's prediction; NaN for a regression |
| `label_probability` | T floats | of the label at each checkpoint; NaN for a regression |
| `loss_grads` | bytes | raw little-endian float32 (or `--feature_dtype`) [T, C], no learning rate applied |
| `activations` | bytes | likewise [T, D], with a trailing 1 where the bias is included |
| `loss_grad_norms`, `activation_norms` | bytes | raw little-endian float64 [T] |

Further keys of an example (`--keep_keys`) are copied under their own names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from transforms.sums import norms

FIELDS = (
    "example_id",
    "source",
    "offset",
    "content_digest",
    "label",
    "prediction",
    "probability",
    "label_probability",
    "loss_grads",
    "activations",
    "loss_grad_norms",
    "activation_norms",
)

# What loss gradients and activations may be stored as; all of them are whole float32 numbers too.
DTYPES: Mapping[str, tf.DType] = {"float32": tf.float32, "bfloat16": tf.bfloat16, "float16": tf.float16}

NO_LABEL = -1  # pads lists of class indices to one length


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The features of n examples at T checkpoints.

    Attributes:
        example_ids: [n] byte strings (dtype S), UTF-8.
        labels: [n, L] int64 (class indices, padded with −1) or float64 (values of a regression).
        predictions: [n, P], likewise.
        probabilities: [n] float32, of the last checkpoint's prediction.
        label_probabilities: [n, T] float32.
        loss_grads: [n, T, C] float32.
        activations: [n, T, D] float32, with a trailing 1 where the bias is included.
        loss_grad_norms, activation_norms: [n, T] float64.
    """

    example_ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    loss_grads: np.ndarray
    activations: np.ndarray
    loss_grad_norms: np.ndarray
    activation_norms: np.ndarray

    def __len__(self) -> int:
        return len(self.example_ids)

    def take(self, rows: Any) -> Features:
        """The features of some rows: a slice, an index array or a mask."""
        return Features(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @staticmethod
    def of(
        example_ids: Sequence[bytes] | np.ndarray,
        labels: np.ndarray,
        predictions: np.ndarray,
        probabilities: np.ndarray,
        label_probabilities: np.ndarray,
        loss_grads: np.ndarray,
        activations: np.ndarray,
        feature_dtype: str = "float32",
    ) -> Features:
        """Features of examples whose arrays are given: rounds loss gradients and activations to the dtype, and computes the norms."""
        loss_grads, activations = (_rounded(array, feature_dtype) for array in (loss_grads, activations))
        return Features(
            id_array(example_ids),
            labels,
            predictions,
            np.asarray(probabilities, np.float32),
            np.asarray(label_probabilities, np.float32),
            loss_grads,
            activations,
            norms(loss_grads),
            norms(activations),
        )

    @staticmethod
    def concatenate(parts: Sequence[Features]) -> Features:
        """The rows of `parts` (at least one), one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = {}
        for field in dataclasses.fields(Features):
            arrays = [getattr(part, field.name) for part in parts]
            columns[field.name] = concatenate_labels(arrays) if field.name in ("labels", "predictions") else np.concatenate(arrays)
        return Features(**columns)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a record came from: file, record index, digest of the serialized example, and the keys that are kept of it."""

    source: str
    offset: int
    content_digest: bytes
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Origins:
    """Where n records came from, as arrays: an object for each would be several times as large where they travel.

    Attributes:
        sources: names of files, each once.
        source: [n] int32, the file of each, by its place among these.
        offsets: [n] int64, record indices.
        digests: [n, 16] uint8, content digests.
    """

    sources: tuple[str, ...]
    source: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray

    @staticmethod
    def of(origins: Sequence[Origin]) -> Origins:
        """The same of each by itself; digests of one length."""
        place = {source: i for i, source in enumerate(dict.fromkeys(one.source for one in origins))}
        return Origins(
            tuple(place),
            np.array([place[one.source] for one in origins], np.int32),
            np.array([one.offset for one in origins], np.int64),
            np.frombuffer(b"".join(one.content_digest for one in origins), np.uint8).reshape(len(origins), -1 if origins else 0),
        )


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest float32 numbers that the dtype holds; infinity for what is beyond it."""
    with np.errstate(over="ignore"):
        stored = array.astype(DTYPES[dtype].as_numpy_dtype, copy=False)
    return np.ascontiguousarray(stored, np.float32)


def id_array(ids: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """Byte strings as an array [n] of dtype S, which sorts like the strings."""
    return np.array(ids, dtype=np.bytes_) if len(ids) else np.empty(0, "S1")


def concatenate_labels(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Label arrays [n_i, L_i], one after the other, padded to the longest L with `NO_LABEL`."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=NO_LABEL) if part.shape[1] < width else part for part in parts]
    )


def encode(features: Features, origins: Sequence[Origin], feature_dtype: str = "float32") -> list[bytes]:
    """Serializes n feature records, all with the same kept keys; equal records give equal bytes, fields sorted by key.

    Loss gradients and activations must be such as the dtype holds.
    """
    kept = {
        key: [origin.kept[key].SerializeToString(deterministic=True) for origin in origins] for key in (origins[0].kept if origins else ())
    }
    return encode_columns(features, Origins.of(origins), kept, feature_dtype)


def encode_columns(
    features: Features, origins: Origins, kept: Mapping[str, Sequence[bytes]], feature_dtype: str = "float32"
) -> list[bytes]:
    """As `encode`, of origins in columns; `kept` has by key the serialized `tf.train.Feature` of each.

    It frames the fields itself, whose heads are the same from record to record: to build a message of every one takes longer than a small
    network takes to compute them.
    """
    stored = DTYPES[feature_dtype].as_numpy_dtype
    sources = [source.encode() for source in origins.sources]
    payloads: dict[str, tuple[int, np.ndarray | Sequence[bytes]]] = {
        "example_id": (_BYTES, _texts(features.example_ids)),
        "source": (_BYTES, _constant(sources[0]) if len(sources) == 1 else [sources[i] for i in origins.source.tolist()]),
        "offset": (_INTEGERS, _varints(origins.offsets)),
        "content_digest": (_BYTES, origins.digests),
        "label": _numbers(features.labels),
        "prediction": _numbers(features.predictions),
        "probability": (_FLOATS, _rows(features.probabilities, "<f4")),
        "label_probability": (_FLOATS, _rows(features.label_probabilities, "<f4")),
        "loss_grads": (_BYTES, _rows(features.loss_grads, stored)),
        "activations": (_BYTES, _rows(features.activations, stored)),
        "loss_grad_norms": (_BYTES, _rows(features.loss_grad_norms, "<f8")),
        "activation_norms": (_BYTES, _rows(features.activation_norms, "<f8")),
        **{key: (_MESSAGE, serialized) for key, serialized in kept.items()},
    }
    return _examples(len(features), payloads)


def encode_vectors(example_ids: np.ndarray, labels: np.ndarray, vectors: np.ndarray) -> list[bytes]:
    """Serializes n `tf.train.Example`s of `example_id`, `label` and `vector`: [n], [n, L] and [n, d] float32, lists of floats."""
    return _examples(
        len(vectors),
        {
            "example_id": (_BYTES, _texts(example_ids)),
            "label": _numbers(labels),
            "vector": (_FLOATS, _rows(vectors, "<f4")),
        },
    )


def _examples(n: int, payloads: Mapping[str, tuple[int, np.ndarray | Sequence[bytes]]]) -> list[bytes]:
    """Serialized `tf.train.Example`s [n] of columns: the kind of a column's lists, and the content of each, as rows [n, size] of bytes, a
    row [1, size] for all, or by itself.

    Neighbouring columns whose contents have one size are laid side by side in an array, so that little is left to do for each record, and
    nothing where this is so of all columns.
    """
    pieces: list[list[bytes]] = []
    fixed: list[np.ndarray] = []

    def lay() -> None:
        if fixed:
            pieces.append(_beside(n, fixed))
            fixed.clear()

    for name, key in sorted((name.encode(), name) for name in payloads):
        kind, content = payloads[key]
        rows = content if isinstance(content, np.ndarray) else _as_rows(content)
        if rows is not None:
            fixed += [_constant(_head(name, kind, rows.shape[1])), rows]
        else:
            lay()
            pieces.append([_head(name, kind, len(value)) + value for value in content])
    if not pieces:
        return _beside(n, [_constant(_example_head(sum(column.shape[1] for column in fixed))), *fixed])
    lay()
    return [_example(*row) for row in zip(*pieces, strict=True)]


def _beside(n: int, columns: Sequence[np.ndarray]) -> list[bytes]:
    """The rows of columns [n, size] or [1, size] side by side."""
    return _one_by_one(np.concatenate([np.broadcast_to(column, (n, column.shape[1])) for column in columns], axis=1))


def _constant(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)[None]


def _texts(texts: np.ndarray) -> np.ndarray | list[bytes]:
    """Byte strings [n] (dtype S) as rows [n, size] where all are of one length."""
    rows = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1 if len(texts) else 0)
    # A shorter one is filled up with NULs, which none ends with.
    return rows if rows.shape[1] and rows[:, -1].all() else texts.tolist()


def _one_by_one(rows: np.ndarray) -> list[bytes]:
    """Rows [n, size] of bytes, size at least 1, as byte strings."""
    data, size = rows.tobytes(), rows.shape[1]
    return [data[start : start + size] for start in range(0, len(data), size)]


def _as_rows(contents: Sequence[bytes]) -> np.ndarray | None:
    """Byte strings of one length as an array [n, length]; None where they have several."""
    lengths = set(map(len, contents))
    if len(lengths) > 1:
        return None
    return np.frombuffer(b"".join(contents), np.uint8).reshape(len(contents), max(lengths, default=0))


def relocate(serialized: bytes, source: str, offset: int) -> bytes:
    """A feature record as `encode` would give it, had its example been at this place."""
    feature = tf.train.Example.FromString(serialized).features.feature
    feature["source"].bytes_list.value[:] = [source.encode()]
    feature["offset"].int64_list.value[:] = [offset]
    parts = []
    # Not the library's own order, in which a key comes after those that it begins.
    for name, key in sorted((name.encode(), name) for name in feature):
        value = feature[key].SerializeToString(deterministic=True)
        parts += [_head(name, _MESSAGE, len(value)), value]
    return _example(b"".join(parts))


def _example(*entries: bytes) -> bytes:
    """A `tf.train.Example` of these entries of its map."""
    return b"".join((_example_head(sum(map(len, entries))), *entries))


def _example_head(size: int) -> bytes:
    """What stands before the entries, of `size` bytes together."""
    return b"\x0a" + _varint(size)


# Numbers of the lists in `tf.train.Feature`; and a Feature that is whole already.
_BYTES, _FLOATS, _INTEGERS, _MESSAGE = 1, 2, 3, 0


@functools.lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    """An integer as Protocol Buffers write it, seven bits a byte; one below zero as its 64-bit two's complement."""
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _varints(values: np.ndarray) -> np.ndarray | list[bytes]:
    """Integers [n] as Protocol Buffers write them, as rows [n, size] where all take as many bytes."""
    places = np.arange(10)
    septets = values.astype(np.uint64)[:, None] >> (7 * places).astype(np.uint64)
    sizes = np.maximum(1, np.count_nonzero(septets, axis=1))
    written = (septets & np.uint64(0x7F)).astype(np.uint8) | np.where(places < sizes[:, None] - 1, 0x80, 0).astype(np.uint8)
    if len(values) and sizes.min() == sizes.max():
        return written[:, : sizes[0]]
    return [row[:size] for row, size in zip(_one_by_one(written), sizes.tolist(), strict=True)]


@functools.lru_cache(maxsize=4096)
def _head(key: bytes, kind: int, size: int) -> bytes:
    """What stands before the last `size` bytes, the payload, of an entry of the map `tf.train.Features.feature`.

    The payload is the last field of the innermost of nested messages, so that it ends where all of them do.
    """
    # A packed list without numbers is not written at all; a byte string without bytes is.
    numbers = (1,) if kind == _BYTES or size else ()
    inside = () if kind == _MESSAGE else (kind, *numbers)
    head = b""
    for number in (*reversed(inside), 2):
        head = bytes((number << 3 | 2,)) + _varint(len(head) + size) + head
    head = b"\x0a" + _varint(len(key)) + key + head
    return b"\x0a" + _varint(len(head) + size) + head


def float_list(array: np.ndarray) -> bytes:
    """A serialized `tf.train.FloatList` of an array's numbers."""
    data = array.ravel().astype("<f4").tobytes()
    return b"\x0a" + _varint(len(data)) + data if data else b""


def _rows(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The bytes of each of n rows: [n, size]."""
    flat = np.ascontiguousarray(array, dtype).reshape(len(array), math.prod(array.shape[1:]))
    return flat.view(np.uint8) if flat.size else np.empty((len(array), 0), np.uint8)


def _numbers(values: np.ndarray) -> tuple[int, np.ndarray | list[bytes]]:
    """The lists of n rows: of whole numbers but `NO_LABEL`, or of float32."""
    if np.issubdtype(values.dtype, np.integer):
        if values.shape[1] == 1 and (values != NO_LABEL).all():
            return _INTEGERS, _varints(values[:, 0])
        return _INTEGERS, [b"".join([_varint(v) for v in row if v != NO_LABEL]) for row in values.tolist()]
    with np.errstate(over="ignore"):
        return _FLOATS, _rows(values, "<f4")


def decode(
    serialized: Sequence[bytes], checkpoints: int, outputs: int, units: int, integer_labels: bool, feature_dtype: str = "float32"
) -> Features:
    """Parses n feature records of `checkpoints` T, `outputs` C and `units` D (the trailing 1 of a bias counted)."""
    n = len(serialized)
    stored = DTYPES[feature_dtype]
    label = tf.io.RaggedFeature(tf.int64 if integer_labels else tf.float32)
    text = tf.io.FixedLenFeature([], tf.string)
    # On the CPU by name: strings live nowhere else.
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(serialized, tf.string, shape=[n]),
            {
                "example_id": text,
                "label": label,
                "prediction": label,
                "probability": tf.io.FixedLenFeature([], tf.float32),
                "label_probability": tf.io.FixedLenFeature([checkpoints], tf.float32),
                "loss_grads": text,
                "activations": text,
                "loss_grad_norms": text,
                "activation_norms": text,
            },
        )
        arrays = {
            name: tf.cast(tf.io.decode_raw(parsed[name], dtype), wanted).numpy()
            for name, dtype, wanted in (
                ("loss_grads", stored, tf.float32),
                ("activations", stored, tf.float32),
                ("loss_grad_norms", tf.float64, tf.float64),
                ("activation_norms", tf.float64, tf.float64),
            )
        }
    return Features(
        id_array(parsed["example_id"].numpy().tolist()),
        _padded(parsed["label"]),
        _padded(parsed["prediction"]),
        parsed["probability"].numpy(),
        parsed["label_probability"].numpy(),
        arrays["loss_grads"].reshape(n, checkpoints, outputs),
        arrays["activations"].reshape(n, checkpoints, units),
        arrays["loss_grad_norms"].reshape(n, checkpoints),
        arrays["activation_norms"].reshape(n, checkpoints),
    )


def example_ids(serialized: Sequence[bytes]) -> list[bytes]:
    """The ids of n feature records; nothing else of them is parsed."""
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(serialized, tf.string, shape=[len(serialized)]), {"example_id": tf.io.FixedLenFeature([], tf.string)}
        )
    ids: list[bytes] = parsed["example_id"].numpy().tolist()
    return ids


def kept_texts(serialized: Sequence[bytes], keys: Sequence[str]) -> dict[str, list[str]]:
    """What n feature records keep under these keys, as text: [n] for each."""
    features = [tf.train.Example.FromString(one).features.feature for one in serialized] if keys else []
    return {key: [text(one[key]) for one in features] for key in keys}


def text(feature: tf.train.Feature) -> str:
    """The values of a kept key as text."""
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else []
    return ", ".join(value.decode(errors="replace") if isinstance(value, bytes) else _number_text(value) for value in values)


def _number_text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def origins(serialized: Sequence[bytes]) -> list[Origin]:
    """Where n feature records came from, without kept keys; those of one file share its name."""
    text = tf.io.FixedLenFeature([], tf.string)
    wanted = {"source": text, "offset": tf.io.FixedLenFeature([], tf.int64), "content_digest": text}
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(tf.constant(serialized, tf.string, shape=[len(serialized)]), wanted)
    columns = [parsed[name].numpy().tolist() for name in wanted]
    names = {source: source.decode() for source in columns[0]}
    return [Origin(names[source], offset, digest) for source, offset, digest in zip(*columns, strict=True)]


def packed_origins(serialized: Sequence[bytes]) -> Origins:
    """Where n feature records came from, likewise."""
    return Origins.of(origins(serialized))


def _padded(ragged: tf.RaggedTensor) -> np.ndarray:
    values = ragged.to_tensor(default_value=NO_LABEL).numpy()
    if values.shape[1] == 0:
        values = np.full((len(values), 1), NO_LABEL, values.dtype)
    return values if values.dtype == np.int64 else values.astype(np.float64)
