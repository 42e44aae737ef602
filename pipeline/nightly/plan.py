"""The steps of a night, and the requests that launch their jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.nightly.argument import NightlyConfig


@dataclasses.dataclass(frozen=True)
class Previous:
    """The last complete night before this one.

    Attributes:
        directory: in the bucket, with a slash at its end.
        feature_sets: its complete ones, of `train_features` and `test_features`.
    """

    directory: str
    feature_sets: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Step:
    """One job of a night.

    Attributes:
        name: of the step and of its directory below the night's.
        command: of the template.
        parameters: of the template.
        base: the feature set of the last night that the first attempt copies from; None without
            one. A base of another model is refused, so a further attempt goes without.
    """

    name: str
    command: str
    parameters: Mapping[str, str]
    base: str | None = None


def plan_steps(config: NightlyConfig, previous: Previous | None) -> list[Step]:
    """Returns the steps of a night, in order."""
    steps = [_extraction(config, "train_features", config.train, previous)]
    audited = dict(config.audit)
    if previous:
        # Thresholds that compare are refused where there is nothing to compare with.
        audited |= {**config.drift, "previous": f"gs://{config.bucket}/{previous.directory}audit"}
    audited["features"] = f"{config.root}train_features"
    if config.test is not None:
        steps.append(_extraction(config, "test_features", config.test, previous))
        sets = {name: f"{config.root}{name}" for name in ("train_features", "test_features")}
        audited["test_features"] = sets["test_features"]
        steps.append(_step(config, "influence", "score", {**config.score, **sets}))
    return [*steps, _step(config, "audit", "audit", audited)]


def _extraction(
    config: NightlyConfig, name: str, examples: Mapping[str, str], previous: Previous | None
) -> Step:
    base = None
    if previous and config.reuse and name in previous.feature_sets:
        base = f"gs://{config.bucket}/{previous.directory}{name}"
    return _step(config, name, "features", {**config.model, **examples}, base)


def _step(
    config: NightlyConfig,
    name: str,
    command: str,
    parameters: Mapping[str, str],
    base: str | None = None,
) -> Step:
    return Step(name, command, {**parameters, "output": f"{config.root}{name}"}, base)


def job_name(config: NightlyConfig, step: Step, attempt: int) -> str:
    """Returns a job's name. It has the date, so that Dataflow refuses a second job of the same
    night while the first is active.
    """
    return f"tracin-{step.name.replace('_', '-')}-{config.date}-{attempt}"


def launch_parameter(config: NightlyConfig, step: Step, attempt: int) -> dict[str, Any]:
    """Returns the `launchParameter` of `projects.locations.flexTemplates.launch`.

    Args:
        config: of the night.
        step: to launch.
        attempt: 1 at first.
    """
    base = {"base": step.base} if step.base and attempt == 1 else {}
    return {
        "jobName": job_name(config, step, attempt),
        "containerSpecGcsPath": f"{config.templates}/{step.command}.json",
        "parameters": {**step.parameters, **base},
        "environment": dict(config.environment),
    }
