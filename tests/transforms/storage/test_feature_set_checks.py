"""The manifest of a feature set, and the checks of it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest

from transforms.core.errors import InputError
from transforms.storage import feature_set_checks, manifests
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import FeatureManifest

SETTINGS: dict[str, Any] = {
    "layer": "dense",
    "loss": "mse",
    "checkpoints": [{"name": "a.keras", "sha256": "00"}, {"name": "b.keras", "sha256": "01"}],
    "examples": [{"name": "a.tfrecord", "size": 3}],
    "label_key": "label",
}
MANIFEST = FeatureManifest(
    kind="features",
    fingerprint="f",
    settings=SETTINGS,
    files=(StoredFile("features-0.tfrecord", 10, 123, 4), StoredFile("features-1", 20, 456, 3)),
    counts={"examples": 7, "rejected": 1},
    model_fingerprint="m",
    task="class",
    outputs=3,
    units=7,
    checkpoints=("a.keras", "b.keras"),
    learning_rates=(0.1, None),
    rejected_files=(StoredFile("rejected-0.jsonl", 5, 7, 1),),
    rejected={"bad-label": 1},
    inputs=({"key": "x", "shape": [3], "dtype": "float32"},),
)


def with_settings(**changes: Any) -> FeatureManifest:
    return dataclasses.replace(MANIFEST, settings={**SETTINGS, **changes})


def test_lists_are_tuples_again_once_it_is_read(tmp_path: pathlib.Path) -> None:
    manifests.write(str(tmp_path), MANIFEST)
    assert manifests.read(str(tmp_path), FeatureManifest, "features") == MANIFEST


def test_it_counts_records_and_lists_rejected_files() -> None:
    assert MANIFEST.examples == 7
    assert MANIFEST.names == {"features-0.tfrecord", "features-1", "rejected-0.jsonl"}
    assert MANIFEST.integer_labels
    assert not dataclasses.replace(MANIFEST, task="regression").integer_labels


@pytest.mark.parametrize(
    ("settings", "differing"),
    [
        ({"layer": "logits"}, "layer"),
        ({"layer": "logits", "loss": "mae"}, "layer, loss"),
        ({}, "checkpoints' content"),
    ],
)
def test_feature_sets_of_different_models_are_refused(
    settings: dict[str, Any], differing: str
) -> None:
    feature_set_checks.check_same_model(MANIFEST, with_settings(layer="x"), "TEST", "TRAIN")
    other = dataclasses.replace(with_settings(**settings), model_fingerprint="other")
    with pytest.raises(InputError) as caught:
        feature_set_checks.check_same_model(MANIFEST, other, "TEST", "TRAIN")
    message = str(caught.value)
    assert f"TEST and TRAIN are features of different models (different {differing}):" in message


def test_positions_are_needed_to_sum_them() -> None:
    feature_set_checks.check_positions(dataclasses.replace(MANIFEST, per_token=True), "DIR")
    with pytest.raises(InputError, match="the records of DIR are examples") as caught:
        feature_set_checks.check_positions(MANIFEST, "DIR")
    assert caught.value.field == "sum_positions"


def test_records_are_reused_only_from_the_same_extraction() -> None:
    # Other files, and more of them, are what reuse is for.
    feature_set_checks.check_same_extraction(
        MANIFEST, with_settings(examples=[], allow_truncated_files=True), "BASE"
    )
    message = (
        r"`base='BASE'` was extracted with other settings \(label_key was \"label\", is \"y\"\)"
    )
    with pytest.raises(InputError, match=message):
        feature_set_checks.check_same_extraction(MANIFEST, with_settings(label_key="y"), "BASE")


def test_learning_rates_that_are_given_precede_those_of_the_set() -> None:
    known = dataclasses.replace(MANIFEST, learning_rates=(0.1, 0.2))
    assert feature_set_checks.usable_rates(known, None) == (0.1, 0.2)
    assert feature_set_checks.usable_rates(MANIFEST, (0.3, 0.4)) == (0.3, 0.4)
    with pytest.raises(InputError, match=r"`learning_rates` has 1 numbers, .* of 2 checkpoints"):
        feature_set_checks.usable_rates(MANIFEST, (0.3,))


def test_an_unknown_learning_rate_names_the_setting() -> None:
    message = (
        r"no learning rate is known for b\.keras: give one per checkpoint with `learning_rates="
    )
    with pytest.raises(InputError, match=message):
        feature_set_checks.usable_rates(MANIFEST, None)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1e-31, 1e31, float("inf"), float("nan")])
def test_a_learning_rate_that_cannot_weigh_a_checkpoint_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"the learning rate of b\.keras is .*, which would leave"):
        feature_set_checks.usable_rate(rate, "b.keras")
