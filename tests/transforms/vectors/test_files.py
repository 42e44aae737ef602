"""Vectors as files: ranges of rows, exact products, equal files, and the projection beside them."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.synthetic import exact_scores, write_set
from tests.vector_sets import RATES, SMALL, export, feature_set, features_of, vectors_in
from transforms.core.errors import InputError
from transforms.scoring.influence import Scoring
from transforms.vectors.config import ProjectionConfig, VectorTuning
from transforms.vectors.files import (
    ExportVectors,
    FormatWriter,
    count_zero,
    plan_shards,
    read_other_projection,
    read_projection,
)


@pytest.mark.parametrize("normalize", ["none", "cosine"])
def test_exported_vectors_multiply_to_the_influence(
    tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path, normalize: str
):
    export(train, tmp_path / "v", ProjectionConfig("exact", normalize=normalize))
    export(test_set, tmp_path / "t", ProjectionConfig(projection_of=str(tmp_path / "v")))
    assert len(list((tmp_path / "v").glob("vectors-*.npy"))) == 3
    expected = exact_scores(features_of(test_set), features_of(train), Scoring(RATES, 1, normalize))
    products = vectors_in(tmp_path / "t").astype(np.float64) @ vectors_in(tmp_path / "v").T
    own = [
        np.diag(exact_scores(features, features, Scoring(RATES, 1, normalize)))
        for features in map(features_of, (test_set, train))
    ]
    assert (np.abs(products - expected) <= 1e-6 * np.sqrt(np.outer(*own))).all()


def test_another_projection_is_of_the_same_model_and_may_be_normalised_otherwise(
    tmp_path: pathlib.Path, train: pathlib.Path
):
    export(train, tmp_path / "v", ProjectionConfig("exact", normalize="cosine"))
    directory = str(tmp_path / "v")
    for normalize, unit_length in ((None, True), ("cosine", True), ("none", False)):
        config = ProjectionConfig(projection_of=directory, normalize=normalize)
        projection, source = read_other_projection(config, feature_set(train))
        assert projection.scaling.unit_length == unit_length and source.kind == "vectors"
    other = write_set(tmp_path / "other", [9], 5, "other-", model_fingerprint="another")
    with pytest.raises(InputError, match="is for features of another model") as caught:
        read_other_projection(ProjectionConfig(projection_of=directory), feature_set(other))
    assert caught.value.field == "projection_of"


@pytest.mark.parametrize("method", ["auto", "principal", "sketch", "random"])
def test_equal_seeds_give_equal_files(tmp_path: pathlib.Path, train: pathlib.Path, method: str):
    sums = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        export(train, tmp_path / name, ProjectionConfig(method, 10, seed))
        files = sorted((tmp_path / name).glob("*.np[yz]"))
        sums.append(b"".join(path.read_bytes() for path in files))
    assert sums[0] == sums[1] != sums[2]


def test_a_projection_is_stored_with_its_vectors(tmp_path: pathlib.Path, train: pathlib.Path):
    manifest = export(train, tmp_path / "v", ProjectionConfig(dimensions=10))
    projection = read_projection(str(tmp_path / "v"), manifest)
    vectors = projection.project(features_of(train))
    np.testing.assert_allclose(vectors, vectors_in(tmp_path / "v"), rtol=1e-5, atol=1e-6)
    assert manifest.counts == {
        "vectors": 280,
        "zero": 0,
        "dimensions": 10,
        "coordinates": projection.kept,
    }


def test_the_size_of_files_changes_no_vector(tmp_path: pathlib.Path, train: pathlib.Path):
    for name, tuning in (("small", SMALL), ("whole", VectorTuning())):
        export(train, tmp_path / name, ProjectionConfig(dimensions=10), tuning)
    small, whole = (vectors_in(tmp_path / name) for name in ("small", "whole"))
    assert np.array_equal(small, whole)
    read = [(tmp_path / name / "projection.npz").read_bytes() for name in ("small", "whole")]
    assert read[0] == read[1]


def test_ranges_cover_all_rows_once(train: pathlib.Path):
    shards = list(plan_shards(feature_set(train), 100))
    assert [(shard.number, shard.start, shard.rows) for shard in shards] == [
        (0, 0, 100),
        (1, 100, 100),
        (2, 200, 80),
    ]
    spans = [(span.file, span.start, span.stop) for shard in shards for span in shard.spans]
    assert spans == [(0, 0, 100), (0, 100, 150), (2, 0, 50), (2, 50, 130)]


def test_no_ranges_of_an_empty_set(tmp_path: pathlib.Path):
    empty = feature_set(write_set(tmp_path / "set", [0], 5, "empty-"))
    with pytest.raises(InputError, match="holds no example"):
        list(plan_shards(empty, 10))
    with pytest.raises(InputError, match="holds no example") as caught:
        _ = ExportVectors(empty, ProjectionConfig(), str(tmp_path / "v")).draft
    assert caught.value.field == "features"


def test_a_file_is_bounded_by_rows_and_by_bytes():
    writer = FormatWriter("out", ("npy",), VectorTuning(file_rows=100, file_bytes=4000))
    assert writer.rows(5) == 100
    assert writer.rows(20) == 50
    assert writer.rows(10_000) == 1


def test_zero_vectors_are_counted():
    assert count_zero(np.array([[0, 0], [0, 1], [0, 0]], np.float32)) == 2


def test_the_draft_depends_on_every_setting(train: pathlib.Path):
    configs = [
        ProjectionConfig(),
        ProjectionConfig("principal"),
        ProjectionConfig(dimensions=9),
        ProjectionConfig(seed=1),
        ProjectionConfig(normalize="cosine"),
        ProjectionConfig(learning_rates=(0.1, 0.1)),
        ProjectionConfig(formats=("npy", "parquet")),
    ]
    drafts = [ExportVectors(feature_set(train), config, "out").draft for config in configs]
    assert len({draft.fingerprint for draft in drafts}) == len(configs)
    assert drafts[0].settings == {
        "features": "train-",
        "model": "model",
        "formats": ["npy"],
        "learning_rates": [0.1, 0.02],
        "normalize": "none",
        "projection": "auto",
        "dimensions": 36,
        "seed": 0,
    }
