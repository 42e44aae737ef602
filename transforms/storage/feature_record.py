"""The feature record: what stage 1 stores of an example and stage 2 reads, as arrays and as a
serialized `tf.train.Example`.

| field | type | content |
|---|---|---|
| `example_id` | bytes | the example's id, UTF-8 |
| `source`, `offset` | bytes, int64 | the file it came from and its record index there |
| `content_digest` | bytes | XXH3, 128 bits, of the serialized example |
| `label`, `prediction` | int64 or float list | by task: class index; 0 or 1; indices of the active outputs; values of a regression |
| `probability` | float | of the last checkpoint's prediction; NaN for a regression |
| `label_probability` | T floats | of the label at each checkpoint; NaN for a regression |
| `loss_grads` | bytes | raw little-endian float32 (or `feature_dtype`) [T, C], no learning rate applied |
| `activations` | bytes | likewise [T, D], with a trailing 1 where the bias is included |
| `loss_grad_norms`, `activation_norms` | bytes | raw little-endian float64 [T] |

Further keys of an example (`keep_keys`) are copied under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from transforms.core.features import DTYPES, NO_LABEL, Features
from transforms.core.ids import id_array
from transforms.core.origins import Origin, Origins
from transforms.storage.example_wire import (
    BYTES_LIST,
    FLOAT_LIST,
    INT64_LIST,
    WHOLE_FEATURE,
    byte_rows,
    constant_row,
    entry_head,
    number_lists,
    serialize_example,
    serialize_examples,
    text_rows,
    varint_rows,
)

if TYPE_CHECKING:
    import tensorflow as tf

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

    Loss gradients and activations must be such as the dtype holds.
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
    """As `encode`, of origins in columns; `kept` has by key the serialized `tf.train.Feature` of
    each.

    It frames the fields itself, whose heads are the same from record to record: to build a message
    of every one takes longer than a small network takes to compute them.
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
    """A feature record as `encode` would give it, had its example been at this place."""
    import tensorflow as tf

    feature = tf.train.Example.FromString(serialized).features.feature
    feature["source"].bytes_list.value[:] = [source.encode()]
    feature["offset"].int64_list.value[:] = [offset]
    parts = []
    # Not the library's own order, in which a key comes after those that it begins.
    for name, key in sorted((name.encode(), name) for name in feature):
        value = feature[key].SerializeToString(deterministic=True)
        parts += [entry_head(name, WHOLE_FEATURE, len(value)), value]
    return serialize_example(b"".join(parts))


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
    """
    import tensorflow as tf

    n = len(serialized)
    stored = tf.dtypes.as_dtype(DTYPES[feature_dtype])
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
    import tensorflow as tf

    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(serialized, tf.string, shape=[len(serialized)]),
            {"example_id": tf.io.FixedLenFeature([], tf.string)},
        )
    ids: list[bytes] = parsed["example_id"].numpy().tolist()
    return ids


def kept_texts(serialized: Sequence[bytes], keys: Sequence[str]) -> dict[str, list[str]]:
    """What n feature records keep under these keys, as text: [n] for each."""
    import tensorflow as tf

    features = (
        [tf.train.Example.FromString(one).features.feature for one in serialized] if keys else []
    )
    return {key: [text(one[key]) for one in features] for key in keys}


def text(feature: tf.train.Feature) -> str:
    """The values of a kept key as text."""
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else []
    return ", ".join(
        value.decode(errors="replace") if isinstance(value, bytes) else _number_text(value)
        for value in values
    )


def _number_text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def origins(serialized: Sequence[bytes]) -> list[Origin]:
    """Where n feature records came from, without kept keys; those of one file share its name."""
    import tensorflow as tf

    text = tf.io.FixedLenFeature([], tf.string)
    wanted = {"source": text, "offset": tf.io.FixedLenFeature([], tf.int64), "content_digest": text}
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(serialized, tf.string, shape=[len(serialized)]), wanted
        )
    columns = [parsed[name].numpy().tolist() for name in wanted]
    names = {source: source.decode() for source in columns[0]}
    return [
        Origin(names[source], offset, digest)
        for source, offset, digest in zip(*columns, strict=True)
    ]


def packed_origins(serialized: Sequence[bytes]) -> Origins:
    """Where n feature records came from, likewise."""
    return Origins.of(origins(serialized))


def _padded(ragged: tf.RaggedTensor) -> np.ndarray:
    values = ragged.to_tensor(default_value=NO_LABEL).numpy()
    if values.shape[1] == 0:
        values = np.full((len(values), 1), NO_LABEL, values.dtype)
    return values if values.dtype == np.int64 else values.astype(np.float64)
