"""The feature record: what stage 1 stores of an example and stage 2 reads, as arrays and as a serialized `tf.train.Example`.

| field | type | content |
|---|---|---|
| `example_id` | bytes | the example's id, UTF-8 |
| `source`, `offset` | bytes, int64 | the file it came from and its record index there |
| `content_digest` | bytes | BLAKE2b, 16 bytes, of the serialized example |
| `label`, `prediction` | int64 or float list | by task: class index; 0 or 1; indices of the active outputs; values of a regression |
| `probability` | float | of the last checkpoint's prediction; NaN for a regression |
| `label_probability` | T floats | of the label at each checkpoint; NaN for a regression |
| `loss_grads` | bytes | raw little-endian float32 [T, C], no learning rate applied |
| `activations` | bytes | raw little-endian float32 [T, D], with a trailing 1 where the bias is included |
| `loss_grad_norms`, `activation_norms` | bytes | raw little-endian float64 [T] |

Further keys of an example (`--keep_keys`) are copied under their own names.
"""

from __future__ import annotations

import dataclasses
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
        example_ids: Sequence[str],
        labels: np.ndarray,
        predictions: np.ndarray,
        probabilities: np.ndarray,
        label_probabilities: np.ndarray,
        loss_grads: np.ndarray,
        activations: np.ndarray,
    ) -> Features:
        """Features of examples whose arrays are given; computes the norms."""
        return Features(
            id_array([example_id.encode() for example_id in example_ids]),
            labels,
            predictions,
            np.asarray(probabilities, np.float32),
            np.asarray(label_probabilities, np.float32),
            np.ascontiguousarray(loss_grads, np.float32),
            np.ascontiguousarray(activations, np.float32),
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


def id_array(ids: Sequence[bytes]) -> np.ndarray:
    """Byte strings as an array [n] of dtype S, which sorts like the strings."""
    return np.array(ids, dtype=np.bytes_) if len(ids) else np.empty(0, "S1")


def concatenate_labels(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Label arrays [n_i, L_i], one after the other, padded to the longest L with `NO_LABEL`."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=NO_LABEL) if part.shape[1] < width else part for part in parts]
    )


def encode(features: Features, origins: Sequence[Origin]) -> list[bytes]:
    """Serializes n feature records; equal records give equal bytes."""
    loss_grads = features.loss_grads.astype("<f4", copy=False)
    activations = features.activations.astype("<f4", copy=False)
    loss_grad_norms = features.loss_grad_norms.astype("<f8", copy=False)
    activation_norms = features.activation_norms.astype("<f8", copy=False)
    encoded = []
    for i, origin in enumerate(origins):
        fields = dict(origin.kept)
        fields["example_id"] = _bytes(features.example_ids[i])
        fields["source"] = _bytes(origin.source.encode())
        fields["offset"] = tf.train.Feature(int64_list=tf.train.Int64List(value=(origin.offset,)))
        fields["content_digest"] = _bytes(origin.content_digest)
        fields["label"] = _numbers(features.labels[i])
        fields["prediction"] = _numbers(features.predictions[i])
        fields["probability"] = _floats(features.probabilities[i : i + 1])
        fields["label_probability"] = _floats(features.label_probabilities[i])
        fields["loss_grads"] = _bytes(loss_grads[i].tobytes())
        fields["activations"] = _bytes(activations[i].tobytes())
        fields["loss_grad_norms"] = _bytes(loss_grad_norms[i].tobytes())
        fields["activation_norms"] = _bytes(activation_norms[i].tobytes())
        example = tf.train.Example(features=tf.train.Features(feature=fields))
        encoded.append(example.SerializeToString(deterministic=True))
    return encoded


def decode(serialized: Sequence[bytes], checkpoints: int, outputs: int, units: int, integer_labels: bool) -> Features:
    """Parses n feature records of `checkpoints` T, `outputs` C and `units` D (the trailing 1 of a bias counted)."""
    n = len(serialized)
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
            name: tf.io.decode_raw(parsed[name], dtype).numpy()
            for name, dtype in (
                ("loss_grads", tf.float32),
                ("activations", tf.float32),
                ("loss_grad_norms", tf.float64),
                ("activation_norms", tf.float64),
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


def _padded(ragged: tf.RaggedTensor) -> np.ndarray:
    values = ragged.to_tensor(default_value=NO_LABEL).numpy()
    if values.shape[1] == 0:
        values = np.full((len(values), 1), NO_LABEL, values.dtype)
    return values if values.dtype == np.int64 else values.astype(np.float64)


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=(bytes(value),)))


def _floats(values: np.ndarray) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))


def _numbers(values: np.ndarray) -> tf.train.Feature:
    if np.issubdtype(values.dtype, np.integer):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[v for v in values.tolist() if v != NO_LABEL]))
    return _floats(values)
