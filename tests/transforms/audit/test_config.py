"""Settings and plans of audits: accepted combinations, and refusals in one line."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.transforms.audit.sets import SETTINGS, with_manifest, written
from transforms.audit.config import (
    AuditConfig,
    check_not_empty,
    check_test_not_empty,
    class_count,
    plan_audit,
)
from transforms.core.errors import InputError
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> FeatureSet:
    return written(tmp_path_factory.mktemp("train"), [4, 2])


def test_a_plan_names_all_settings_that_decide_the_content(train, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    manifests.write(str(tmp_path / "old"), Manifest("audit", "old-fingerprint", {}, (), {}))
    config = AuditConfig(
        min_suspicion=0.25,
        max_suspects_per_class=7,
        min_similarity=0.5,
        slice_keys=("place",),
        class_names=str(names),
        previous=str(tmp_path / "old"),
        max_shift=0.5,
        fail_on_drift=True,
        overwrite=True,
    )
    plan = plan_audit(config, str(tmp_path / "out"), train, train)
    assert json.loads(json.dumps(plan.draft.settings)) == {
        "features": train.manifest.fingerprint,
        "learning_rates": [0.1, 0.02],
        "min_suspicion": 0.25,
        "max_suspects_per_class": 7,
        "min_similarity": 0.5,
        "previous": "old-fingerprint",
        "class_names": ["a", "b", "c"],
        "test_features": train.manifest.fingerprint,
        "slice_keys": ["place"],
        "thresholds": {
            "max_suspect_fraction": None,
            "max_appeared_suspects": None,
            "max_shift": 0.5,
        },
    }
    assert plan.draft.fingerprint == manifests.fingerprint(plan.draft.settings)
    assert plan.learning_rates == (0.1, 0.02) and plan.classes == 3
    assert plan.class_names == ("a", "b", "c") and plan.previous.fingerprint == "old-fingerprint"
    # Whether a crossed threshold fails the run is no part of the content.
    calm = dataclasses.replace(config, fail_on_drift=False, overwrite=False)
    assert plan_audit(calm, "elsewhere", train, train).draft == plan.draft


def test_rates_that_are_given_replace_those_of_the_set(train):
    plan = plan_audit(AuditConfig(learning_rates=(1.0, 2.0)), "out", train)
    assert plan.learning_rates == (1.0, 2.0)
    assert plan.draft.settings["learning_rates"] == [1.0, 2.0]
    assert "slice_keys" not in plan.draft.settings and plan.previous is None


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        ({"learning_rates": (1.0,)}, "learning_rates", "has 1 numbers"),
        ({"previous": "{train}"}, "previous", "holds features, expected audit"),
        ({"previous": "nowhere"}, "previous", "no complete set"),
        ({"class_names": "nowhere"}, "class_names", "cannot be read"),
        (
            {"slice_keys": ("place", "colour", "time")},
            "slice_keys",
            "names 'colour', .*`keep_keys=place,colour,time`",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(train, config, field, message):
    named = {
        name: value.format(train=train.directory) if isinstance(value, str) else value
        for name, value in config.items()
    }
    with pytest.raises(InputError, match=message) as error:
        plan_audit(AuditConfig(**named), "out", train, train)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_suspicion": 1.5}, "no fraction"),
        ({"min_suspicion": float("nan")}, "no fraction"),
        ({"min_similarity": -0.5}, "no fraction"),
        ({"max_suspect_fraction": 2}, "no fraction"),
        ({"max_suspects_per_class": 0}, "lists no suspect"),
        ({"max_appeared_suspects": -1, "previous": "old"}, "is negative"),
        ({"max_appeared_suspects": 1}, "needs an audit to compare with"),
        ({"max_shift": 0.5}, "needs an audit to compare with"),
        ({"fail_on_drift": True}, "needs a threshold"),
    ],
)
def test_a_setting_out_of_range_or_alone_is_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message) as error:
        AuditConfig(**settings)
    assert error.value.field == next(iter(settings))


def test_slices_need_a_test_set(train):
    with pytest.raises(InputError, match="test set") as error:
        plan_audit(AuditConfig(slice_keys=("place",)), "out", train)
    assert error.value.field == "slice_keys"


def test_an_audit_is_not_compared_with_itself(train, tmp_path):
    manifests.write(str(tmp_path), Manifest("audit", "old", {}, (), {}))
    with pytest.raises(InputError, match="directory of its own") as error:
        plan_audit(AuditConfig(previous=str(tmp_path)), f"{tmp_path}/", train)
    assert error.value.field == "previous"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regression"}, "labels of the kind regression"),
        ({"task": "multilabel"}, "labels of the kind multilabel"),
        ({"settings": {**SETTINGS, "labels": "predicted"}}, "`labels=given`"),
    ],
)
def test_only_classes_that_somebody_gave_are_audited(train, changes, message):
    other = with_manifest(train, **changes)
    with pytest.raises(InputError, match=message):
        plan_audit(AuditConfig(), "out", other)
    with pytest.raises(InputError, match=message):
        plan_audit(AuditConfig(), "out", train, other)


def test_a_test_set_of_another_model_is_refused(train):
    with pytest.raises(InputError, match="different models"):
        plan_audit(AuditConfig(), "out", train, with_manifest(train, model_fingerprint="other"))


def test_empty_sets_are_refused(train):
    empty = with_manifest(train, files=())
    for check, message in (
        (check_not_empty, "nothing to audit"),
        (check_test_not_empty, "nothing to influence"),
    ):
        check(train)
        with pytest.raises(InputError, match=message):
            check(empty)


def test_a_binary_classifier_has_two_classes(train):
    assert class_count(with_manifest(train, task="binary", outputs=1).manifest) == 2
    assert class_count(train.manifest) == 3


def test_a_plan_refuses_another_configuration_or_directory(train):
    config = AuditConfig()
    plan = plan_audit(config, "out", train)
    plan.check(config, "out")
    for other, output in ((AuditConfig(min_suspicion=0.4), "out"), (config, "elsewhere")):
        with pytest.raises(InputError, match="pass both the same"):
            plan.check(other, output)
