"""Feature sets as a graph begins with them: those that are there, and those that it computes
first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import apache_beam as beam

from transforms.core.errors import InputError
from transforms.storage import manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet

if TYPE_CHECKING:
    from pipeline.preparation.inputs import PreparedFeatures


def name_set(
    pipeline: beam.Pipeline, name: str, directory: str, flag: str, fingerprint: str
) -> beam.PCollection:
    """A committed feature set as the graph reads it: FeatureSet (one). It must still be the one
    with this fingerprint.
    """
    return (
        pipeline
        | f"Name{name}Set" >> beam.Create([directory])  # directory
        | f"Read{name}Manifest" >> beam.Map(read_set, flag, fingerprint)  # FeatureSet
    )


def read_set(directory: str, flag: str, expected: str | None = None) -> FeatureSet:
    """A committed feature set.

    Raises:
        InputError: there is none, or one with another fingerprint than `expected`.
    """
    found = manifests.read(directory, FeatureManifest, flag)
    if expected not in (None, found.fingerprint):
        raise InputError(
            f"--{flag}={directory!r} was computed anew since this run was started: start it again"
        )
    return FeatureSet(directory, found)


def feature_set(pipeline: beam.Pipeline, name: str, one: PreparedFeatures) -> beam.PCollection:
    """A set that is there already, or else is computed first: FeatureSet (one). `name` is part of
    the steps' names.
    """
    if one.complete:
        return name_set(pipeline, name, one.directory, "output", one.fingerprint)
    return (
        pipeline
        | f"Compute{name}Features" >> one.stage  # FeatureManifest
        | f"Name{name}Set"
        >> beam.Map(
            lambda committed, directory=one.directory: FeatureSet(directory, committed)
        )  # FeatureSet
        # Planning waits for the set. Without a border it would be fused with the commit of one,
        # which then waited for another.
        | f"Publish{name}Set" >> beam.Reshuffle()  # FeatureSet
    )
