"""The summary against sums over all rows in Python."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from tests.transforms.audit.sets import written
from transforms.audit.config import AuditConfig, AuditPlan, plan_audit
from transforms.audit.slices import Slices
from transforms.audit.summary import (
    ClassSums,
    ShardSummary,
    crossed,
    describe_crossed,
    read_summary,
    summarize,
)
from transforms.core.errors import InputError
from transforms.duplicates.find import Duplicates
from transforms.duplicates.groups import Groups
from transforms.storage import filesystems
from transforms.storage.manifests import Manifest

CLASSES = 4


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> AuditPlan:
    train = written(tmp_path_factory.mktemp("train"), [3])
    return dataclasses.replace(plan_audit(AuditConfig(), "out", train), classes=CLASSES)


def drawn(n: int = 120) -> tuple[pa.Table, Slices]:
    """Rows of the classes 0, 1 and 3 with influence on a test set, which lacks the label 2, and on
    three slices of it.
    """
    rng = np.random.default_rng(3)
    slices = Slices(CLASSES, (("k", "a"), ("k", "b"), ("l", "c")), np.array([3, 1, 0, 4, 5, 3, 8]))
    by_label = rng.normal(size=(n, CLASSES))
    lists = [[*row[:2], None, *row[3:]] for row in by_label.tolist()]
    columns = {
        "example_id": [f"ex-{i:03d}" for i in range(n)],
        "label": rng.choice([0, 1, 3], n),
        "prediction": rng.choice([0, 1, 3], n),
        "self_influence": rng.random(n) * np.exp2(rng.integers(-3, 3, n)),
        "suspicion": rng.integers(0, 20, n) / 20,
        "suggested_label": rng.integers(0, CLASSES, n),
        "test_influence": rng.normal(size=n),
        "test_influence_by_label": pa.array(lists, pa.list_(pa.float64())),
        "test_influence_by_slice": pa.array(rng.normal(size=(n, 3)).tolist()),
    }
    return pa.table(columns), slices


def duplicates() -> Duplicates:
    groups = Groups(np.arange(7), np.repeat([0, 1, 2], [2, 3, 2]), np.ones(7), np.arange(7) < 5)
    return Duplicates(groups, 11)


def summary_of(
    table: pa.Table, slices: Slices | None, plan: AuditPlan, shards: int = 3, **settings
) -> dict:
    config = AuditConfig(**{"min_suspicion": 0.75, **settings})
    size = math.ceil(table.num_rows / shards)
    parts = [
        ShardSummary.of(table.slice(i, size), slices, CLASSES, config.min_suspicion)
        for i in range(0, table.num_rows, size)
    ]
    return summarize(parts, [], duplicates(), {"suspects": 5, "duplicates": 6}, config, plan)


def test_counts_are_those_of_all_rows(plan):
    table, slices = drawn()
    rows = table.to_pylist()
    summary = summary_of(table, slices, plan)
    suspects = [row for row in rows if row["suspicion"] >= 0.75]
    assert summary["examples"] == 120 and summary["suspects"] == len(suspects) > 20
    assert summary["listed_suspects"] == 5 and summary["min_suspicion"] == 0.75
    assert summary["accuracy"] == np.mean([row["prediction"] == row["label"] for row in rows])
    assert summary["expected_wrong_labels"] == pytest.approx(sum(row["suspicion"] for row in rows))
    assert [row["label"] for row in summary["classes"]] == [0, 1, 3]
    for row in summary["classes"]:
        own = [other for other in rows if other["label"] == row["label"]]
        assert row["examples"] == len(own)
        assert row["mean_self_influence"] == pytest.approx(
            np.mean([other["self_influence"] for other in own])
        )
        suggested = {pair["label"]: pair["suspects"] for pair in row["suggested"]}
        assert list(suggested.values()) == sorted(suggested.values(), reverse=True)
        for k, count in suggested.items():
            assert count == sum(
                other["suggested_label"] == k for other in own if other["suspicion"] >= 0.75
            )
        assert sum(suggested.values()) == row["suspects"]
    assert sum(row["suspects"] for row in summary["confusions"]) == len(suspects)
    histogram = summary["suspicion_histogram"]
    assert sum(bar["examples"] for bar in histogram) == 120 and len(histogram) == 20
    for bar in summary["self_influence_histogram"]:
        assert bar["examples"] == sum(
            bar["from"] <= row["self_influence"] < bar["to"] for row in rows
        )


def test_influence_on_labels_and_slices_is_the_mean_of_all_rows(plan):
    table, slices = drawn()
    rows = table.to_pylist()
    test = summary_of(table, slices, plan)["test"]
    ordered = sorted(rows, key=lambda row: row["test_influence"])
    assert [row["example_id"] for row in test["harmful"]] == [
        row["example_id"] for row in ordered[:50]
    ]
    assert [row["example_id"] for row in test["helpful"]] == [
        row["example_id"] for row in ordered[::-1][:50]
    ]
    for between in test["between_labels"]:
        own = [row for row in rows if row["label"] == between["label"]]
        for k, mean in enumerate(between["on"]):
            values = [row["test_influence_by_label"][k] for row in own]
            assert mean is None if k == 2 else mean == pytest.approx(np.mean(values))
    assert [(row["key"], row["value"], row["examples"]) for row in test["slices"]] == [
        ("k", "a", 5),
        ("k", "b", 3),
        ("l", "c", 8),
    ]
    for i, row in enumerate(test["slices"]):
        values = np.array([other["test_influence_by_slice"][i] for other in rows])
        assert row["mean_influence"] == pytest.approx(values.mean())
        assert [end["influence"] for end in row["helpful"]] == sorted(values)[::-1][:5]
        assert [end["influence"] for end in row["harmful"]] == sorted(values)[:5]
    assert test["slice_keys_left_out"] == []


def test_without_a_test_set_there_is_no_influence_on_it(plan):
    table, _ = drawn()
    names = [name for name in table.column_names if name.startswith("test_")]
    assert "test" not in summary_of(table.drop_columns(names), None, plan)


def test_duplicates_are_counted_by_group(plan):
    assert summary_of(*drawn(), plan, min_similarity=0.5)["duplicates"] == {
        "min_similarity": 0.5,
        "groups": 3,
        "examples": 7,
        "conflicting_groups": 2,
        "conflicting_examples": 5,
        "listed_examples": 6,
        "pairs_left_out": 11,
    }


def test_integer_counts_do_not_depend_on_shards(plan):
    table, _ = drawn()
    one, many = (
        ClassSums.add(
            [ClassSums.of(table.slice(i, size), CLASSES, 0.75) for i in range(0, 120, size)]
        )
        for size in (120, 7)
    )
    for name in ("examples", "correct", "suspects", "suggested", "suspicions"):
        assert getattr(one, name).tolist() == getattr(many, name).tolist(), name
    for name in ("expected_wrong", "self_influence", "between"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-12)


DRIFT = {
    "suspects": {"appeared": 4},
    "classes": [{"distance": 0.25}, {"distance": None}, {"distance": 0.5}],
}


@pytest.mark.parametrize(
    ("thresholds", "drift", "names"),
    [
        ({}, DRIFT, []),
        ({"max_suspect_fraction": 0.2}, None, []),
        ({"max_suspect_fraction": 0.19}, None, ["max_suspect_fraction"]),
        ({"max_appeared_suspects": 4, "max_shift": 0.5}, DRIFT, []),
        (
            {"max_appeared_suspects": 3, "max_shift": 0.4},
            DRIFT,
            ["max_appeared_suspects", "max_shift"],
        ),
        ({"max_appeared_suspects": 0, "max_shift": 0.0}, None, []),
    ],
)
def test_thresholds_are_crossed_by_larger_values_alone(thresholds, drift, names):
    summary = {"suspects": 2, "examples": 10, **({"drift": drift} if drift else {})}
    rows = crossed(summary, AuditConfig(previous="old", **thresholds))
    assert [row["threshold"] for row in rows] == names
    for row in rows:
        assert row["found"] > row["limit"] == thresholds[row["threshold"]]
    line = describe_crossed("somewhere", {"crossed": rows})
    assert all(f"`{name}={thresholds[name]:g}`" in line for name in names)


def test_a_summary_is_verified_when_it_is_read(tmp_path):
    file = filesystems.write(str(tmp_path), "summary.json", b'{"examples": 3}', 1)
    manifest = Manifest("audit", "", {}, (file,), {})
    assert read_summary(str(tmp_path), manifest) == {"examples": 3}
    (tmp_path / "summary.json").write_bytes(b'{"examples": 4}')
    with pytest.raises(InputError, match=r"summary\.json"):
        read_summary(str(tmp_path), manifest)
