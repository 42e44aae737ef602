"""A committed feature set as a graph begins with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam

from transforms.core.errors import InputError
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest


def read_feature_set(
    directory: str, field: str = "features", fingerprint: str | None = None
) -> FeatureSet:
    """Reads the manifest of a committed feature set.

    Args:
        directory: where the set is.
        field: the setting that names it, for messages.
        fingerprint: the set's fingerprint, or None for any.

    Raises:
        InputError: there is no feature set, or one with another fingerprint.
    """
    manifest = manifests.read(directory, FeatureManifest, field)
    if fingerprint not in (None, manifest.fingerprint):
        raise InputError(
            f"`{field}={directory!r}` was computed anew since this run was started: start it again"
        )
    return FeatureSet(directory, manifest)


@dataclasses.dataclass
class ReadFeatureSet(beam.PTransform):
    """Begins a graph with a committed feature set: pipeline → FeatureSet (one).

    Attributes:
        directory: where the set is.
        field: the setting that names it, for messages.
        fingerprint: the set must still have it when the graph runs; None for any.
    """

    directory: str
    field: str = "features"
    fingerprint: str | None = None

    def expand(self, pipeline: Any) -> beam.PCollection:
        return (
            pipeline
            | "NameSet" >> beam.Create([self.directory])  # directory
            | "ReadManifest"
            >> beam.Map(read_feature_set, self.field, self.fingerprint)  # FeatureSet
        )
