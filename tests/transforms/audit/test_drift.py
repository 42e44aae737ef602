"""Comparison of audits against dictionaries, and distances against SciPy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from transforms.audit import drift
from transforms.audit.drift import Changes, Distributions

ROW = st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.sampled_from([0.1, 0.4, 0.6, 0.9]))
SET = st.dictionaries(st.sampled_from([f"ex-{i}" for i in range(12)]), ROW)


def table(rows: dict[str, tuple[str, int, float]]) -> pa.Table:
    return pa.table(
        {
            "example_id": pa.array(list(rows), pa.string()),
            "content_digest": pa.array([row[0] for row in rows.values()], pa.string()),
            "label": pa.array([row[1] for row in rows.values()], pa.int64()),
            "suspicion": pa.array([row[2] for row in rows.values()], pa.float64()),
            "self_influence": pa.array([row[2] * 3 for row in rows.values()], pa.float64()),
        }
    )


@given(SET, SET)
def test_every_example_is_told_as_what_became_of_it(now, then):
    found = drift.compare(0, table(now), table(then), 0.5, 0.7)
    expected, counted = (
        [],
        {
            "examples": dict.fromkeys(drift.EXAMPLE_CHANGES, 0),
            "suspects": dict.fromkeys(drift.SUSPECT_CHANGES, 0),
        },
    )
    for one in sorted(now.keys() | then.keys()):
        here, there = now.get(one), then.get(one)
        what = None
        for name, is_so in (
            ("new", here and not there),
            ("gone", there and not here),
            ("changed", here and there and here[0] != there[0]),
            ("relabelled", here and there and here[1] != there[1]),
        ):
            if is_so:
                what = name
                counted["examples"][name] += 1
        suspect, was = bool(here and here[2] >= 0.5), bool(there and there[2] >= 0.7)
        how = (
            "appeared"
            if suspect and not was
            else "stayed"
            if suspect
            else ("fixed" if here else "gone")
            if was
            else None
        )
        if how:
            counted["suspects"][how] += 1
        if what or how in ("appeared", "fixed"):
            expected.append(
                (one, what, how, *(side and side[i] for i in (1, 2) for side in (here, there)))
            )
    assert [tuple(row.values()) for row in found.rows.to_pylist()] == expected
    assert {"examples": found.examples, "suspects": found.suspects} == counted


@given(SET, SET, st.integers(1, 5))
def test_buckets_add_up_to_the_whole(now, then, buckets):
    whole = drift.compare(0, table(now), table(then), 0.5, 0.5)
    sides = [dict(drift.spread(table(rows), buckets)) for rows in (now, then)]
    empty = table({})
    parts = [
        drift.compare(i, *(side.get(i, empty) for side in sides), 0.5, 0.5) for i in range(buckets)
    ]
    assert drift.summarize(parts, {}) == drift.summarize([whole], {})
    assert (
        sorted(row["example_id"] for part in parts for row in part.rows.to_pylist())
        == whole.rows["example_id"].to_pylist()
    )


def test_nothing_changed_is_nothing_told():
    rows = {f"ex-{i}": ("a", i % 2, 0.1 * i) for i in range(10)}
    found = drift.compare(0, table(rows), table(rows), 0.5, 0.5)
    told = drift.summarize([found], {"fingerprint": "x"})
    assert found.rows.num_rows == 0 and told["previous"] == {"fingerprint": "x"}
    assert set(told["examples"].values()) == {0} and told["suspects"] == {
        "appeared": 0,
        "stayed": 5,
        "fixed": 0,
        "gone": 0,
    }
    assert [(row["distance"], row["p_value"]) for row in told["classes"]] == [(0.0, 1.0)] * 2


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 99), st.floats(0, 2))
def test_the_shift_is_that_of_scipy(n, m, seed, moved):
    rng = np.random.default_rng(seed)
    # In the middle of their bins, so that equal bins are equal numbers.
    one, other = (
        2.0 ** ((np.round(rng.normal(size=size) * 30 + moved * 30) + 0.5) / 16) for size in (n, m)
    )
    distance, p_value = drift.shift(
        Distributions.of(np.zeros(n, int), one), Distributions.of(np.zeros(m, int), other), 0
    )
    assert distance == pytest.approx(scipy.stats.ks_2samp(one, other).statistic, abs=1e-12)
    size = n * m / (n + m)
    assert p_value == pytest.approx(
        scipy.stats.kstwobign.sf((np.sqrt(size) + 0.12 + 0.11 / np.sqrt(size)) * distance), abs=1e-9
    )


def test_a_dropped_class_and_zeros_are_told():
    now = Distributions.of(np.array([0, 0]), np.array([0.0, 1.0]))
    then = Distributions.of(np.array([0, 0, 1]), np.array([0.0, 0.0, 1.0]))
    assert drift.shift(now, then, 1) == (None, None)
    assert drift.shift(now, then, 0)[0] == 0.5
    part = Changes(
        0,
        table({}),
        dict.fromkeys(drift.EXAMPLE_CHANGES, 0),
        dict.fromkeys(drift.SUSPECT_CHANGES, 0),
        now,
        then,
    )
    assert [
        (row["label"], row["examples"], row["previous_examples"])
        for row in drift.summarize([part], {})["classes"]
    ] == [
        (0, 2, 2),
        (1, 0, 1),
    ]
