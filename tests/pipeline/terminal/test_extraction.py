"""Checkpoints and feature sets in the terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipeline.terminal.extraction import checkpoints, features


def test_checkpoints_have_their_steps_and_learning_rates() -> None:
    loaded = SimpleNamespace(
        output=None, layer="logits", loss=SimpleNamespace(description="Loss()")
    )
    infos = (
        SimpleNamespace(path="a/one.keras", step=1200, note=None),
        SimpleNamespace(path="a/two.keras", step=None, note="no optimizer"),
    )
    model: Any = SimpleNamespace(loaded=loaded, infos=infos, learning_rates=(0.05, None))
    assert checkpoints(model).splitlines() == [
        "2 checkpoints, last dense layer 'logits', loss Loss():",
        "  one.keras  step 1,200  learning rate 0.05",
        "  two.keras  no learning rate (no optimizer)",
    ]
    loaded.output = "kind"
    assert checkpoints(model).startswith("2 checkpoints, output 'kind', last dense layer")


def manifest(**changes: Any) -> Any:
    values = {
        "files": (SimpleNamespace(size=2000),),
        "counts": {"examples": 1234},
        "examples": 5678,
        "per_token": False,
        "rejected": {},
    }
    return SimpleNamespace(**{**values, **changes})


def test_a_feature_set_is_described() -> None:
    assert features("out", manifest()) == "features: 1,234 examples, 2.0 KB in 1 file at out"
    assert features("out", manifest(per_token=True), "test_features") == (
        "test_features: 1,234 examples of 5,678 positions, 2.0 KB in 1 file at out"
    )


def test_rejects_are_counted_by_reason() -> None:
    lines = features("out", manifest(rejected={"no-label": 1000, "no-id": 2})).splitlines()
    assert lines[1] == "  1,002 rejected (no-label 1,000, no-id 2): see out/rejected-*.jsonl"
