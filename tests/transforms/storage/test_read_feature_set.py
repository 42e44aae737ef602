"""A committed feature set, read by itself and at the beginning of a graph."""

from __future__ import annotations

import pathlib

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.synthetic import write_set
from transforms.core.errors import InputError
from transforms.storage.feature_set import FeatureSet
from transforms.storage.read_feature_set import ReadFeatureSet, read_feature_set


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> str:
    return str(write_set(tmp_path / "set", [4, 3], 1, "train-"))


def test_a_set_is_its_directory_and_its_manifest(directory: str) -> None:
    features = read_feature_set(directory)
    assert features.directory == directory and features.manifest.examples == 7
    assert read_feature_set(directory, fingerprint=features.manifest.fingerprint) == features


def test_a_set_that_was_computed_anew_is_refused(directory: str) -> None:
    with pytest.raises(InputError, match="was computed anew since this run was started") as caught:
        read_feature_set(directory, "train_features", "another")
    assert caught.value.field == "train_features"


def test_a_directory_without_manifest_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"`test_features=.*` is not a complete set"):
        read_feature_set(str(tmp_path), "test_features")


def test_a_graph_begins_with_a_set(directory: str) -> None:
    expected: FeatureSet = read_feature_set(directory)
    with beam.Pipeline() as pipeline:
        sets = pipeline | ReadFeatureSet(directory, fingerprint=expected.manifest.fingerprint)
        assert_that(sets, equal_to([expected]))
