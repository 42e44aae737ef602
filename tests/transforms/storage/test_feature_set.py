"""A committed feature set: records by ranges and by rows, and damage that is named."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from tests.synthetic import draw, write_set
from tests.transforms.influence.test_score import committed
from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.shapes import Shape, Span
from transforms.scoring.tiles import spans
from transforms.storage import filesystems, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import tfrecords


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
@pytest.mark.parametrize(
    "rows", [[0], [7, 44, 45, 104], [*range(3, 99)], [104, 7, 7, 0], [*range(98, 2, -1), 5]]
)
def test_records_are_taken_by_rows(feature_set: FeatureSet, rows: list[int]) -> None:
    whole, taken = everything(feature_set), feature_set.take(np.array(rows))
    assert taken.example_ids.tolist() == whole.example_ids[rows].tolist()
    assert taken.activations.tobytes() == whole.activations[rows].tobytes()


@pytest.mark.parametrize("row", [-1, 105])
def test_a_row_that_is_not_in_the_set_is_refused(feature_set: FeatureSet, row: int) -> None:
    with pytest.raises(IndexError, match=f"row {row} is not among the 105 of"):
        feature_set.take(np.array([3, row]))


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


def test_reading_gives_what_was_written_in_any_spans(tmp_path: pathlib.Path) -> None:
    features = draw(np.random.default_rng(0), 170, 2, 3, 6)
    stored = committed(tmp_path, features, 40)
    for start, stop in ((0, 170), (39, 41), (169, 170), (5, 100)):
        read = stored.read(spans(stored.counts, start, stop))
        expected = features.take(slice(start, stop))
        for field in dataclasses.fields(Features):
            own, theirs = getattr(read, field.name), getattr(expected, field.name)
            assert own.tobytes() == theirs.tobytes(), field.name


# One or two rows are few of a large file, of which only they are read, and many of a small one.
@pytest.mark.parametrize("rows_per_file", [5, 40, 100])
def test_rows_are_taken_whether_whole_files_are_read_or_some_records(
    tmp_path: pathlib.Path, rows_per_file: int
) -> None:
    features = draw(np.random.default_rng(3), 100, 2, 3, 6)
    stored = committed(tmp_path, features, rows_per_file)
    for rows in ([0], [7, 39, 40, 99], [80, 81], list(range(100)), []):
        taken = stored.take(np.array(rows, np.int64))
        assert taken.example_ids.tolist() == features.example_ids[rows].tolist()
        assert taken.loss_grads.tobytes() == features.loss_grads[rows].tobytes()
        assert taken.activation_norms.tobytes() == features.activation_norms[rows].tobytes()


def test_a_damaged_record_that_is_taken_is_reported(tmp_path: pathlib.Path) -> None:
    stored = committed(tmp_path, draw(np.random.default_rng(3), 40, 2, 3, 6), 40)
    path = tmp_path / stored.manifest.files[0].name
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        InputError,
        match=r"features-00000.tfrecord is damaged or gone: record 0 has another checksum",
    ):
        stored.take(np.array([0]))
    assert len(stored.take(np.array([5]))) == 1
    with pytest.raises(InputError, match="is damaged"):
        stored.take(np.arange(20))
