"""Feature sets that can be audited."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from tests.synthetic import features, write_set
from transforms.core.features import Features
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest

SETTINGS = {"layer": "head", "labels": "given", "include_bias": True, "keep_keys": ["place"]}


def clusters(n: int, seed: int = 0) -> Features:
    """Features of 2 checkpoints, 3 classes and 6 units whose activations lie around their class;
    every tenth label is wrong.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = 3 * np.eye(3, 5)[:, None, :]
    activations = centres[labels] + rng.normal(size=(n, 2, 5)) * 0.5
    activations = np.concatenate([activations, np.ones((n, 2, 1))], axis=2)
    wrong = np.where(np.arange(n) % 10 == 9, (labels + 1) % 3, labels)
    return features(rng.normal(size=(n, 2, 3)), activations, "ex-", labels=wrong)


def written(directory: pathlib.Path, rows: list[int], seed: int = 0, **changes: Any) -> FeatureSet:
    """A committed set of such features; `changes` are fields of the manifest."""
    changes = {"settings": SETTINGS, "fingerprint": f"{directory.name}-{seed}", **changes}
    write_set(directory, rows, seed, "ex-", clusters(sum(rows), seed), **changes)
    return FeatureSet(str(directory), manifests.read(str(directory), FeatureManifest, "features"))


def with_manifest(features: FeatureSet, **changes: Any) -> FeatureSet:
    """The set with other fields of its manifest, which is not written."""
    return dataclasses.replace(features, manifest=dataclasses.replace(features.manifest, **changes))
