"""The feature record, which stage 1 stores of an example and stage 2 reads: arrays to and from a
serialized `tf.train.Example`.

| field | type | content |
|---|---|---|
| `example_id` | bytes | the example's id, UTF-8 |
| `source`, `offset` | bytes, int64 | the file it came from and its record index there |
| `content_digest` | bytes | XXH3, 128 bits, of the serialized example |
| `label`, `prediction` | int64 or float list | class index; 0 or 1; active outputs; or values |
| `probability` | float | of the last checkpoint's prediction; NaN for a regression |
| `label_probability` | T floats | of the label at each checkpoint; NaN for a regression |
| `loss_grads` | bytes | little-endian float32 (or `feature_dtype`) [T, C], no learning rate |
| `activations` | bytes | likewise [T, D], with a trailing 1 where the bias is included |
| `loss_grad_norms`, `activation_norms` | bytes | little-endian float64 [T] |

Further keys of an example (`keep_keys`) are copied under their own names. The content of a label
depends on the task: single-label, binary, multi-label or regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from transforms.core.features import DTYPES, NO_LABEL, Features
from transforms.core.origins import Origin, Origins
from transforms.storage.records.example_columns import ArrayContent, DamagedRecord, ExampleColumns
from transforms.storage.records.example_wire import (
    BYTES_LIST,
    FLOAT_LIST,
    INT64_LIST,
    WHOLE_FEATURE,
    Feature,
    byte_rows,
    constant_row,
    entry_head,
    number_lists,
    read_features,
    serialize_example,
    serialize_examples,
    text_rows,
    varint_rows,
)

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


def encode(
    features: Features, origins: Sequence[Origin], feature_dtype: str = "float32"
) -> list[bytes]:
    """Serializes n feature records, all with the same kept keys; equal records give equal bytes,
    fields sorted by key.

    The dtype must hold loss gradients and activations exactly.
    """
    kept = {
        key: [origin.kept[key].SerializeToString(deterministic=True) for origin in origins]
        for key in (origins[0].kept if origins else ())
    }
    return encode_columns(features, Origins.of(origins), kept, feature_dtype)


def encode_columns(
    features: Features,
    origins: Origins,
    kept: Mapping[str, Sequence[bytes]],
    feature_dtype: str = "float32",
) -> list[bytes]:
    """Serializes n feature records as `encode`, from origins in columns; `kept` has by key the
    serialized `tf.train.Feature` of each.

    It frames the fields itself, since their heads are the same from record to record: building a
    message of each takes longer than a small network takes to compute them.
    """
    stored = DTYPES[feature_dtype]
    sources = [source.encode() for source in origins.sources]
    payloads: dict[str, tuple[int, np.ndarray | Sequence[bytes]]] = {
        "example_id": (BYTES_LIST, text_rows(features.example_ids)),
        "source": (
            BYTES_LIST,
            constant_row(sources[0])
            if len(sources) == 1
            else [sources[i] for i in origins.source.tolist()],
        ),
        "offset": (INT64_LIST, varint_rows(origins.offsets)),
        "content_digest": (BYTES_LIST, origins.digests),
        "label": number_lists(features.labels),
        "prediction": number_lists(features.predictions),
        "probability": (FLOAT_LIST, byte_rows(features.probabilities, "<f4")),
        "label_probability": (FLOAT_LIST, byte_rows(features.label_probabilities, "<f4")),
        "loss_grads": (BYTES_LIST, byte_rows(features.loss_grads, stored)),
        "activations": (BYTES_LIST, byte_rows(features.activations, stored)),
        "loss_grad_norms": (BYTES_LIST, byte_rows(features.loss_grad_norms, "<f8")),
        "activation_norms": (BYTES_LIST, byte_rows(features.activation_norms, "<f8")),
        **{key: (WHOLE_FEATURE, serialized) for key, serialized in kept.items()},
    }
    return serialize_examples(len(features), payloads)


def relocate(serialized: bytes, source: str, offset: int) -> bytes:
    """Returns a feature record as `encode` gives it of the same example at another origin."""
    features = {
        **read_features(serialized),
        b"source": Feature(BYTES_LIST, (source.encode(),)),
        b"offset": Feature(INT64_LIST, (offset,)),
    }
    parts = []
    # Not the library's own order, in which a key comes after those that it begins.
    for key in sorted(features):
        value = features[key].serialize()
        parts += [entry_head(key, WHOLE_FEATURE, len(value)), value]
    return serialize_example(*parts)


def decode(
    serialized: Sequence[bytes],
    checkpoints: int,
    outputs: int,
    units: int,
    integer_labels: bool,
    feature_dtype: str = "float32",
) -> Features:
    """Parses n feature records of `checkpoints` T, `outputs` C and `units` D (the trailing 1 of a
    bias counted).

    Raises:
        DamagedRecord: a record is none, or has another shape or dtype.
    """
    label_kind = INT64_LIST if integer_labels else FLOAT_LIST
    stored, norm = DTYPES[feature_dtype], np.dtype(np.float64)
    columns = ExampleColumns(
        serialized,
        {"example_id": BYTES_LIST, "label": label_kind, "prediction": label_kind},
        {
            "probability": ArrayContent(FLOAT_LIST, np.dtype(np.float32), 1),
            "label_probability": ArrayContent(FLOAT_LIST, np.dtype(np.float32), checkpoints),
            "loss_grads": ArrayContent(BYTES_LIST, stored, checkpoints * outputs),
            "activations": ArrayContent(BYTES_LIST, stored, checkpoints * units),
            "loss_grad_norms": ArrayContent(BYTES_LIST, norm, checkpoints),
            "activation_norms": ArrayContent(BYTES_LIST, norm, checkpoints),
        },
    )
    arrays = columns.arrays
    return Features(
        columns.strings("example_id"),
        _labels(columns, "label"),
        _labels(columns, "prediction"),
        arrays["probability"].reshape(-1),
        arrays["label_probability"],
        arrays["loss_grads"].reshape(-1, checkpoints, outputs),
        arrays["activations"].reshape(-1, checkpoints, units),
        arrays["loss_grad_norms"],
        arrays["activation_norms"],
    )


def _labels(columns: ExampleColumns, key: str) -> np.ndarray:
    values, _ = columns.number_lists(key, NO_LABEL)
    if values.shape[1] == 0:
        values = np.full((len(values), 1), NO_LABEL, values.dtype)
    return values if values.dtype == np.int64 else values.astype(np.float64)


def example_ids(serialized: Sequence[bytes]) -> list[bytes]:
    """Returns the ids of n feature records; nothing else of them is parsed."""
    return ExampleColumns(serialized, {"example_id": BYTES_LIST}).string_list("example_id")


def kept_texts(serialized: Sequence[bytes], keys: Sequence[str]) -> dict[str, list[str]]:
    """Returns the kept keys of n feature records as text: [n] for each.

    Raises:
        DamagedRecord: a record has no such key.
    """
    if not keys:
        return {}
    texts: dict[str, list[str]] = {key: [] for key in keys}
    for i, record in enumerate(serialized):
        features = read_features(record)
        for key in keys:
            if key.encode() not in features:
                raise DamagedRecord(i, f"there is no {key!r}")
            texts[key].append(text(features[key.encode()]))
    return texts


def text(feature: Feature) -> str:
    """Returns the values of a kept key as text."""
    return ", ".join(
        value.decode(errors="replace") if isinstance(value, bytes) else _number_text(value)
        for value in feature.values
    )


def _number_text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def origins(serialized: Sequence[bytes]) -> list[Origin]:
    """Returns the origins of n feature records, without kept keys; those of one file share its
    name.
    """
    kinds = {"source": BYTES_LIST, "offset": INT64_LIST, "content_digest": BYTES_LIST}
    columns = ExampleColumns(serialized, kinds)
    sources, digests = columns.string_list("source"), columns.string_list("content_digest")
    names = {source: source.decode() for source in set(sources)}
    return [
        Origin(names[source], offset, digest)
        for source, offset, digest in zip(sources, _offsets(columns).tolist(), digests, strict=True)
    ]


def packed_origins(serialized: Sequence[bytes]) -> Origins:
    """Returns the origins of n feature records in columns."""
    return Origins.of(origins(serialized))


def _offsets(columns: ExampleColumns) -> np.ndarray:
    offsets, counts = columns.number_lists("offset", 0)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        raise DamagedRecord(int(wrong[0]), f"'offset' has {counts[wrong[0]]} numbers, expected 1")
    return offsets.reshape(-1)
