"""The feature set that records are copied from, and the keys of its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.core.ids import example_of
from transforms.extraction.reuse.matching import bucketed, example_key
from transforms.storage import filesystems, manifests
from transforms.storage.feature_set_checks import check_same_extraction
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import tfrecords


@dataclasses.dataclass(frozen=True)
class Base:
    """A committed feature set whose records may be copied.

    Attributes:
        directory: the feature set's directory.
        fingerprint: its identity, by which a replaced set is noticed.
        examples: number of its examples.
        per_token: whether its records are positions of examples.
    """

    directory: str
    fingerprint: str
    examples: int
    per_token: bool = False

    @staticmethod
    def of(directory: str, draft: FeatureManifest) -> Base:
        """Returns the feature set in `directory` as the base of a set with the manifest `draft`.

        Raises:
            InputError: there is no feature set, or it was extracted with other settings.
        """
        manifest = manifests.read(directory, FeatureManifest, "base")
        check_same_extraction(manifest, draft, directory)
        return Base(directory, manifest.fingerprint, manifest.examples, manifest.per_token)

    def files(self) -> tuple[StoredFile, ...]:
        """Returns its feature files.

        Raises:
            InputError: the set is gone, or another is in its place.
        """
        manifest = manifests.read(self.directory, FeatureManifest, "base")
        if manifest.fingerprint != self.fingerprint:
            raise InputError(
                f"`base={self.directory!r}` has been replaced since the run was started: start it "
                "again"
            )
        return manifest.files


def index_base(
    file: StoredFile, base: Base, buckets: int
) -> Iterator[tuple[int, tuple[StoredFile, np.ndarray, bytes]]]:
    """Yields the keys of a feature file's records: (bucket, (file, rows, keys))."""
    payloads = tfrecords.split_frames(filesystems.read_verified(base.directory, file))
    text = tf.io.FixedLenFeature([], tf.string)
    fields = parse_fields(payloads, {"example_id": text, "content_digest": text})
    ids = fields["example_id"].tolist()
    examples = map(example_of, ids) if base.per_token else ids
    digests = fields["content_digest"].tolist()
    keys = [example_key(*pair) for pair in zip(examples, digests, strict=True)]
    for bucket, rows, joined in bucketed(keys, buckets):
        yield bucket, (file, rows, joined)


def parse_fields(
    payloads: Sequence[bytes], fields: Mapping[str, tf.io.FixedLenFeature]
) -> dict[str, np.ndarray]:
    """Parses some fields of n feature records; gives arrays [n] by field."""
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(payloads, tf.string, shape=[len(payloads)]), dict(fields)
        )
    return {name: tensor.numpy() for name, tensor in parsed.items()}
