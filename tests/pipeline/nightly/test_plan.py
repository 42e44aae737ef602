"""The steps of a night: what each copies, and the names of its jobs."""

from __future__ import annotations

import json
from typing import Any

from pipeline.nightly.argument import NightlyConfig, read_argument
from pipeline.nightly.plan import Previous, job_name, launch_parameter, plan_steps
from tests.fakes.nights import LAST, STEPS, argument

PREVIOUS = Previous("nightly/2026-11-24/", frozenset({"train_features"}))


def config(**changes: Any) -> NightlyConfig:
    return read_argument(json.dumps(argument(**changes)), None, "2026-11-25")


def test_the_steps_are_in_the_order_of_their_needs() -> None:
    assert tuple(step.name for step in plan_steps(config(), None)) == STEPS
    steps = plan_steps(config(test=None), None)
    assert [step.name for step in steps] == ["train_features", "audit"]
    assert "test_features" not in steps[1].parameters


def test_only_the_first_attempt_copies_from_a_set_that_there_is() -> None:
    train, test, influence, audit = plan_steps(config(), PREVIOUS)
    assert train.base == f"{LAST}train_features"
    assert (test.base, influence.base, audit.base) == (None, None, None)
    assert "base" in launch_parameter(config(), train, 1)["parameters"]
    assert "base" not in launch_parameter(config(), train, 2)["parameters"]


def test_what_compares_is_sent_where_there_is_something_to_compare_with() -> None:
    alone, compared = plan_steps(config(), None)[-1], plan_steps(config(), PREVIOUS)[-1]
    assert not {"previous", "max_shift", "fail_on_drift"} & alone.parameters.keys()
    assert compared.parameters["previous"] == f"{LAST}audit"
    assert compared.parameters["fail_on_drift"] == "true"


def test_a_jobs_name_has_the_date_and_the_attempt() -> None:
    names = [job_name(config(), step, 2) for step in plan_steps(config(), None)]
    assert names[0] == "tracin-train-features-2026-11-25-2"
    assert len(set(names)) == 4
