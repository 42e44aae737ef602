"""An audit in the terminal."""

from __future__ import annotations

from typing import Any

from pipeline.terminal.audit import audit

SUMMARY: dict[str, Any] = {
    "examples": 1000,
    "suspects": 12,
    "listed_suspects": 12,
    "min_suspicion": 0.5,
    "expected_wrong_labels": 17.2,
    "confusions": [{"label": 3, "suggested_label": 5, "suspects": 7}],
    "crossed": [],
}


def test_a_plain_audit() -> None:
    assert audit("out", SUMMARY).splitlines() == [
        "audit: 1,000 examples, 12 suspects (suspicion of 0.5 or more), about 17 wrong labels "
        "expected, at out",
        "  7 labelled 3, look like 5",
        "  open out/report.html in a browser",
    ]


def test_what_stands_out_has_a_line() -> None:
    summary = {
        **SUMMARY,
        "listed_suspects": 5,
        "confusions": [{"label": 3, "suggested_label": 3, "suspects": 1}] * 9,
        "duplicates": {"conflicting_groups": 1, "conflicting_examples": 2},
        "test": {"slice_keys_left_out": ["camera", "day"]},
        "crossed": [{"what": "the part", "found": 0.25, "threshold": "max_x", "limit": 0.1}],
    }
    lines = audit("out", summary).splitlines()
    assert lines[1] == "  5 of them are listed: see --max_suspects_per_class"
    assert lines[2:7] == ["  1 labelled 3, may be another"] * 5
    assert lines[7:] == [
        "  2 examples in 1 group of duplicates whose labels conflict",
        "  too many values to be slices, left out: camera, day",
        "  the part is 0.25, more than --max_x=0.1",
        "  open out/report.html in a browser",
    ]


def test_what_changed_since_an_earlier_audit() -> None:
    classes = [
        {"label": 1, "distance": 0.1, "p_value": 0.5},
        {"label": 2, "distance": 0.25, "p_value": 0.001},
        {"label": 3, "distance": None, "p_value": None},
    ]
    drift = {
        "previous": {"directory": "before"},
        "examples": {"appeared": 1200, "disappeared": 3},
        "suspects": {"appeared": 2},
        "classes": classes,
    }
    assert audit("out", {**SUMMARY, "drift": drift}).splitlines()[-4:] == [
        "since before:",
        "  examples: 1,200 appeared, 3 disappeared",
        "  suspects: 2 appeared",
        "  self-influence shifted most among those labelled 2 (distance 0.250, p-value 0.001)",
    ]
