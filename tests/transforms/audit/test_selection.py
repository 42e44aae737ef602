"""The rows of an audit that are listed, shown or named, against Python's own sorting."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from transforms.audit import selection
from transforms.audit.slices import Slices
from transforms.duplicates.find import Duplicates
from transforms.duplicates.groups import Groups


def drawn(n: int, seed: int = 0) -> pa.Table:
    """Rows with few different suspicions, so that many are equal."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "example_id": [f"ex-{i:03d}" for i in rng.permutation(n)],
            "label": rng.integers(0, 3, n),
            "suggested_label": rng.integers(0, 3, n),
            "suggested_probability": rng.random(n),
            "suspicion": rng.integers(0, 11, n) / 10,
            "self_influence": rng.random(n),
            "source": ["a"] * n,
            "offset": np.arange(n),
            "content_digest": ["00"] * n,
            "record": np.arange(n),
            "test_influence": rng.integers(-40, 40, n) / 10,
        }
    )


def test_suspects_are_the_worst_of_each_label_and_the_same_from_shards():
    table = drawn(200)
    expected, seen = [], dict.fromkeys(range(3), 0)
    for row in sorted(table.to_pylist(), key=lambda row: (-row["suspicion"], row["example_id"])):
        if row["suspicion"] >= 0.4:
            seen[row["label"]] += 1
            if seen[row["label"]] <= 20:
                expected.append(row)
    found = selection.suspects(table, 0.4, 20)
    assert found.to_pylist() == expected and min(seen.values()) > 20
    shards = [selection.suspects(table.slice(i, 50), 0.4, 20) for i in range(0, 200, 50)]
    assert selection.suspects(pa.concat_tables(shards), 0.4, 20).to_pylist() == expected


def test_self_influence_is_relative_to_the_mean_of_the_label():
    table = drawn(9)
    found = selection.with_relative(table, np.array([0.5, 0.0, 2.0])).to_pylist()
    for row in found:
        mean = (0.5, None, 2.0)[row["label"]]
        assert row["relative_self_influence"] == (
            1 if mean is None else pytest.approx(row["self_influence"] / mean)
        )


def test_a_label_is_proposed_where_it_is_likelier_than_all_others():
    table = drawn(50)
    found = list(selection.actions(table))
    for row, action in zip(table.to_pylist(), found, strict=True):
        relabel = row["suggested_label"] != row["label"] and row["suggested_probability"] > 0.5
        assert action == {
            **row,
            "action": "relabel" if relabel else "drop",
            "suggested_label": row["suggested_label"] if relabel else None,
        }
    assert {row["action"] for row in found} == {"relabel", "drop"}


def test_shown_are_the_worst_and_the_worst_of_each_label():
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(1000) < 700, 0, rng.integers(0, 20, 1000))
    table = pa.table({"label": labels, "row": np.arange(1000)})
    chosen = selection.shown_suspects(table)["row"].to_numpy()
    assert (
        len(chosen) == 200
        and (np.diff(chosen) > 0).all()
        and chosen[:100].tolist() == list(range(100))
    )
    rest = chosen[100:]
    counts = np.bincount(labels[rest], minlength=20)
    assert (
        counts[1:].min() >= 4
        and counts.max() - counts.min() <= 101 - counts[1:].sum() + counts[1:].min()
    )
    assert selection.shown_suspects(table.slice(0, 7))["row"].to_pylist() == list(range(7))


@pytest.mark.parametrize("n", [30, 100, 300])
def test_extremes_are_both_ends_and_the_same_from_shards(n):
    table = drawn(n)
    ordered = sorted(table.to_pylist(), key=lambda row: (row["test_influence"], row["example_id"]))
    expected = ordered if n <= 100 else [*ordered[:50], *ordered[-50:]]
    assert selection.extremes(table).to_pylist() == expected
    shards = [selection.extremes(table.slice(i, 90)) for i in range(0, n, 90)]
    assert selection.extremes(pa.concat_tables(shards)).to_pylist() == expected
    assert not selection.extremes(table.drop_columns(["test_influence"])).num_rows


def test_of_slices_the_largest_name_both_ends():
    rng = np.random.default_rng(1)
    named = tuple(("key", f"{i}") for i in range(60))
    slices = Slices(2, named, np.concatenate([[9, 9], rng.permutation(60)]))
    influence = rng.normal(size=(40, 60))
    table = drawn(40).append_column("test_influence_by_slice", pa.array(influence.tolist()))
    largest = selection.largest_slices(slices).tolist()
    assert sorted(np.argsort(-slices.counts[2:])[:50].tolist()) == largest
    shards = [selection.slice_extremes(table.slice(i, 20), slices) for i in (0, 20)]
    ids = table["example_id"].to_pylist()
    for number in range(60):
        rows = selection.ends_of_slice(pa.concat_tables(shards), number)
        order = np.argsort(influence[:, number])
        ends = [*order[:5], *order[-5:]] if number in largest else []
        assert [row["example_id"] for row in rows] == [ids[i] for i in ends]
        assert [row["influence"] for row in rows] == [influence[i, number] for i in ends]
    assert not selection.slice_extremes(drawn(40), None).num_rows


def duplicates(sizes: list[int], conflicting: list[bool]) -> Duplicates:
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(2)
    records = rng.permutation(200)[: len(numbers)]
    return Duplicates(
        Groups(records, numbers, np.linspace(0.9, 1, len(numbers)), np.array(conflicting)[numbers]),
        0,
    )


def test_listed_groups_are_whole_but_for_a_first_that_is_too_large():
    found = duplicates([3, 4, 2], [True, False, False])
    for limit, listed in ((9, 9), (8, 7), (7, 7), (6, 3), (3, 3), (2, 2)):
        assert selection.listed_groups(found, limit).num_rows == listed


def test_members_are_the_rows_of_duplicates_group_by_group_and_the_same_from_shards():
    table = drawn(200)
    found = duplicates([3, 4, 2], [True, True, False])
    whole = selection.join_members([selection.members(table, found)])
    shards = [selection.members(table.slice(i, 50), found) for i in range(0, 200, 50)]
    assert selection.join_members(shards).to_pylist() == whole.to_pylist()
    groups = found.groups
    by_record = {row["record"]: row for row in table.to_pylist()}
    expected = [
        {
            "group": number,
            "conflicting": conflicting,
            "similarity": similarity,
            **{
                name: by_record[record][name]
                for name in (
                    "example_id",
                    "label",
                    "suggested_label",
                    "suspicion",
                    "source",
                    "offset",
                    "content_digest",
                )
            },
        }
        for number, record, similarity, conflicting in sorted(
            zip(
                groups.numbers.tolist(),
                groups.records.tolist(),
                groups.similarities.tolist(),
                groups.conflicting.tolist(),
                strict=True,
            )
        )
    ]
    assert whole.to_pylist() == expected
    assert selection.join_members([]).num_rows == 0


def test_of_conflicting_groups_as_many_labels_are_shown_as_fit():
    labels = [0] * 8 + [1, 2] + [0, 1]
    members = pa.table(
        {
            "group": [0] * 10 + [1] * 2,
            "label": labels,
            "conflicting": [True] * 12,
            "row": np.arange(12),
        }
    )
    first, second = selection.shown_groups(members)
    assert [row["row"] for row in first] == [0, 1, 2, 3, 8, 9]
    assert [row["row"] for row in second] == [10, 11]
    many = pa.table(
        {
            "group": np.repeat(np.arange(60), 2),
            "label": np.tile([0, 1], 60),
            "conflicting": np.repeat(np.arange(60) < 55, 2),
        }
    )
    assert [group[0]["group"] for group in selection.shown_groups(many)] == list(range(50))
