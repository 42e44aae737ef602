"""A committed feature set: records by ranges and by rows, and damage that is named."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from tests.synthetic import write_set
from transforms.core.errors import InputError
from transforms.core.shapes import Shape, Span
from transforms.storage import filesystems, manifests, tfrecords
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet


@pytest.fixture
def feature_set(tmp_path: pathlib.Path) -> FeatureSet:
    write_set(tmp_path / "set", [40, 5, 60], 3, "s")
    return FeatureSet(
        str(tmp_path / "set"), manifests.read(str(tmp_path / "set"), FeatureManifest, "features")
    )


def everything(feature_set: FeatureSet):
    return feature_set.read([Span(file, 0, n) for file, n in enumerate(feature_set.counts)])


def test_records_are_read_by_ranges(feature_set: FeatureSet) -> None:
    assert feature_set.counts == (40, 5, 60) and feature_set.shape == Shape(2, 3, 6)
    whole = everything(feature_set)
    some = feature_set.read([Span(0, 38, 40), Span(2, 0, 1)])
    assert some.example_ids.tolist() == whole.example_ids[[38, 39, 45]].tolist()
    assert some.loss_grads.tobytes() == whole.loss_grads[[38, 39, 45]].tobytes()


# Few of a file, which are sought one by one, and many.
@pytest.mark.parametrize("rows", [[0], [7, 44, 45, 104], [*range(3, 99)]])
def test_records_are_taken_by_rows(feature_set: FeatureSet, rows: list[int]) -> None:
    whole, taken = everything(feature_set), feature_set.take(np.array(rows))
    assert taken.example_ids.tolist() == whole.example_ids[rows].tolist()
    assert taken.activations.tobytes() == whole.activations[rows].tobytes()


def replaced(feature_set: FeatureSet, change) -> FeatureSet:
    """The set with the last file's records changed, as if they had been written so."""
    file = feature_set.manifest.files[2]
    payloads = change(feature_set.payloads(Span(2, 0, file.count)))
    written = filesystems.write(
        feature_set.directory, file.name, tfrecords.join_frames(payloads), file.count
    )
    files = (*feature_set.manifest.files[:2], written)
    return dataclasses.replace(
        feature_set, manifest=dataclasses.replace(feature_set.manifest, files=files)
    )


def test_a_damaged_record_is_named_with_its_file(feature_set: FeatureSet) -> None:
    damaged = replaced(feature_set, lambda payloads: [*payloads[:7], payloads[7][:-3]] * 8)
    with pytest.raises(InputError, match=r"features-00002.tfrecord: record 7 is damaged: .* again"):
        everything(damaged)
    with pytest.raises(InputError, match=r"features-00002.tfrecord: record 15 is damaged"):
        damaged.read([Span(0, 0, 3), Span(2, 8, 20)])


def test_records_of_another_shape_are_refused(feature_set: FeatureSet) -> None:
    other = dataclasses.replace(
        feature_set, manifest=dataclasses.replace(feature_set.manifest, outputs=4)
    )
    with pytest.raises(InputError, match="'loss_grads' has 24 bytes, expected 32: 8 numbers"):
        everything(other)
