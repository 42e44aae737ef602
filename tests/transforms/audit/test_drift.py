"""Comparison of audits against dictionaries, and distances against SciPy."""

from __future__ import annotations

import io

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from transforms.audit import drift
from transforms.audit.drift import Changes, CompareAudits, Distributions
from transforms.storage import filesystems
from transforms.storage.manifests import Manifest

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
def test_each_example_has_its_kind_of_change(now, then):
    changes = drift.compare(0, table(now), table(then), 0.5, 0.7)
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
    assert [tuple(row.values()) for row in changes.rows.to_pylist()] == expected
    assert {"examples": changes.examples, "suspects": changes.suspects} == counted


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


def test_equal_audits_have_no_changes():
    rows = {f"ex-{i}": ("a", i % 2, 0.1 * i) for i in range(10)}
    changes = drift.compare(0, table(rows), table(rows), 0.5, 0.5)
    summary = drift.summarize([changes], {"fingerprint": "x"})
    assert changes.rows.num_rows == 0 and summary["previous"] == {"fingerprint": "x"}
    assert set(summary["examples"].values()) == {0} and summary["suspects"] == {
        "appeared": 0,
        "stayed": 5,
        "fixed": 0,
        "gone": 0,
    }
    assert [(row["distance"], row["p_value"]) for row in summary["classes"]] == [(0.0, 1.0)] * 2


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


def test_a_dropped_class_has_no_shift_and_zeros_count():
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


def test_a_committed_audit_is_compared_bucket_by_bucket(tmp_path):
    then = {f"ex-{i:02d}": ("a", i % 2, 0.1 * (i % 10)) for i in range(40)}
    now = {
        **{name: row for name, row in then.items() if name != "ex-03"},
        "ex-05": ("b", 0, 0.9),
        "ex-90": ("c", 1, 0.2),
    }
    files = []
    for i, part in enumerate((list(then)[:25], list(then)[25:])):
        buffer = io.BytesIO()
        pq.write_table(table({name: then[name] for name in part}), buffer)
        files.append(
            filesystems.write(str(tmp_path), f"examples-{i}.parquet", buffer.getvalue(), len(part))
        )
    # As many examples as make four buckets, of which the files hold only some.
    previous = Manifest("audit", "old", {"min_suspicion": 0.7}, tuple(files), {"examples": 200_000})
    assert drift.buckets(previous) == 4
    whole = drift.compare(0, table(now), table(then), 0.5, 0.7)

    def check(changes):
        assert len(changes) == 4
        rows = [row for part in changes for row in part.rows.to_pylist()]
        assert sorted(rows, key=lambda row: row["example_id"]) == whole.rows.to_pylist()
        assert drift.summarize(changes, {}) == drift.summarize([whole], {})

    halves = [dict(list(now.items())[:20]), dict(list(now.items())[20:])]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | "Rows" >> beam.Create([table(half) for half in halves])
        manifests = pipeline | "Previous" >> beam.Create([previous])
        assert_that((rows, manifests) | CompareAudits(str(tmp_path), 0.5), check)
