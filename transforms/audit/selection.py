"""The rows of an audit that are listed, shown in its report, or named in its summary.

Each function takes a table of `rows`, of a shard or of the whole audit. Choosing from the choices
of all shards gives the choice from all rows, so that only a few rows of each shard travel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.audit.rows import influence_on
from transforms.audit.slices import Slices
from transforms.duplicates.find import Duplicates

# Suspects in the report, and how many of them are the worst of all labels; the others are the worst
# of each label. 200 pictures make a page of a few MB.
SHOWN_SUSPECTS, SHOWN_WORST = 200, 100
# Rows with the highest, and with the lowest, influence on the test set in the summary.
EXTREMES = 50
# The largest slices, for which the summary names rows with the highest and lowest influence; and
# how many of each.
NAMED_SLICES, SLICE_EXTREMES = 50, 5
# Duplicates that are listed: all rows are in memory when they are written.
LISTED_DUPLICATES = 100_000
# Groups of duplicates in the report, and members of each.
SHOWN_GROUPS, SHOWN_MEMBERS = 50, 6
# A suggested label with a larger probability is likelier than all others together.
_CERTAIN = 0.5

ACTION_COLUMNS = (
    "example_id",
    "action",
    "suggested_label",
    "label",
    "suspicion",
    "suggested_probability",
    "source",
    "offset",
)
# `record` orders members and is left out of the result.
_MEMBER_SCHEMA = pa.schema(
    [
        ("group", pa.int64()),
        ("conflicting", pa.bool_()),
        ("similarity", pa.float64()),
        ("record", pa.int64()),
        ("example_id", pa.string()),
        ("label", pa.int64()),
        ("suggested_label", pa.int64()),
        ("suspicion", pa.float64()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("content_digest", pa.string()),
    ]
)
_SLICE_SCHEMA = pa.schema(
    [
        ("slice", pa.int64()),
        ("influence", pa.float64()),
        ("example_id", pa.string()),
        ("label", pa.int64()),
    ]
)


def suspects(table: pa.Table, min_suspicion: float, max_per_class: int) -> pa.Table:
    """Returns the suspects among rows: at most `max_per_class` of each label, the most suspicious
    first, equal ones by id.
    """
    suspected = table.filter(pa.array(table["suspicion"].to_numpy() >= min_suspicion))
    ordered = suspected.sort_by([("suspicion", "descending"), ("example_id", "ascending")])
    return ordered.filter(pa.array(ranks(ordered["label"].to_numpy()) < max_per_class))


def ranks(labels: np.ndarray) -> np.ndarray:
    """Returns the rank [n] from 0 of each row among the rows with its label."""
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    numbers = np.empty(len(labels), np.int64)
    numbers[by_label] = np.arange(len(labels)) - np.repeat(starts, counts)
    return numbers


def with_relative(suspects: pa.Table, means: np.ndarray) -> pa.Table:
    """Returns suspects with `relative_self_influence`: their self-influence over the mean [K] of
    their label; 1 where the mean is 0.
    """
    own = means[suspects["label"].to_numpy()]
    relative = np.divide(
        suspects["self_influence"].to_numpy(), own, out=np.ones(len(own)), where=own > 0
    )
    return suspects.append_column("relative_self_influence", pa.array(relative))


def actions(suspects: pa.Table) -> Iterator[dict[str, Any]]:
    """Yields suspects with a proposed `action`: `relabel` where another class is likelier than all
    the rest together, else `drop`, without a suggested label.
    """
    for row in suspects.to_pylist():
        relabel = row["suggested_label"] != row["label"] and row["suggested_probability"] > _CERTAIN
        yield {
            **row,
            "action": "relabel" if relabel else "drop",
            "suggested_label": row["suggested_label"] if relabel else None,
        }


def shown_suspects(suspects: pa.Table) -> pa.Table:
    """Returns the suspects of the report, in the order of the list: the worst, then the worst of
    each label.
    """
    numbers = ranks(suspects["label"].to_numpy())
    numbers[:SHOWN_WORST] = -1
    chosen = np.lexsort((np.arange(len(numbers)), numbers))[:SHOWN_SUSPECTS]
    return suspects.take(pa.array(np.sort(chosen)))


def extremes(table: pa.Table) -> pa.Table:
    """Returns the rows with the lowest and the highest influence on the test set, ascending; none
    without a test set.
    """
    if "test_influence" not in table.column_names:
        return table.schema.empty_table()
    return _ends(table, "test_influence", EXTREMES)


def slice_extremes(table: pa.Table, slices: Slices | None) -> pa.Table:
    """Returns the rows with the lowest and the highest influence on each of the largest slices:
    `slice`, `influence`, `example_id`, `label`.
    """
    parts = [_SLICE_SCHEMA.empty_table()]
    values = influence_on(table, "test_influence_by_slice")
    if slices and values is not None:
        for i in largest_slices(slices).tolist():
            own = {"slice": np.full(len(values), i), "influence": values[:, i]}
            named = {name: table[name] for name in ("example_id", "label")}
            parts.append(_ends(pa.table({**own, **named}), "influence", SLICE_EXTREMES))
    return pa.concat_tables(parts)


def ends_of_slice(chosen: pa.Table, number: int) -> list[dict[str, Any]]:
    """Returns the rows with the lowest and the highest influence on a slice, ascending, from the
    `slice_extremes` of all shards.
    """
    own = chosen.filter(pa.array(chosen["slice"].to_numpy() == number))
    return _ends(own, "influence", SLICE_EXTREMES).drop_columns(["slice"]).to_pylist()


def largest_slices(slices: Slices) -> np.ndarray:
    """Returns the indices of the slices by keys with the most test examples, ascending."""
    counts = slices.counts[slices.labels :]
    return np.sort(np.argsort(-counts, kind="stable")[:NAMED_SLICES])


def _ends(table: pa.Table, column: str, count: int) -> pa.Table:
    """The first `count` and the last `count` rows by a column; equal ones by id."""
    ordered = table.sort_by([(column, "ascending"), ("example_id", "ascending")])
    if ordered.num_rows <= 2 * count:
        return ordered
    return pa.concat_tables([ordered.slice(0, count), ordered.slice(ordered.num_rows - count)])


def listed_groups(duplicates: Duplicates, limit: int = LISTED_DUPLICATES) -> pa.Table:
    """Returns `record`, `group`, `conflicting` and `similarity` of the duplicates that are listed.

    Groups are whole, those with conflicting labels first. Only a first group that is larger than
    the limit is cut.
    """
    groups = duplicates.groups
    last = None
    if len(groups.records) > limit:
        last = int(np.searchsorted(groups.numbers, groups.numbers[limit])) or limit
    columns = {
        "record": groups.records,
        "group": groups.numbers,
        "conflicting": groups.conflicting,
        "similarity": groups.similarities,
    }
    return pa.table({name: column[:last] for name, column in columns.items()})


def members(table: pa.Table, duplicates: Duplicates) -> pa.Table:
    """Returns the listed duplicates among rows, with their group."""
    listed = listed_groups(duplicates).sort_by("record")
    records = table["record"].to_numpy()
    chosen = np.isin(records, listed["record"].to_numpy())
    rows = table.filter(pa.array(chosen))
    own = listed.take(pa.array(np.searchsorted(listed["record"].to_numpy(), records[chosen])))
    return pa.table(
        {
            name: own[name] if name in ("group", "conflicting", "similarity") else rows[name]
            for name in _MEMBER_SCHEMA.names
        }
    )


def join_members(parts: Sequence[pa.Table]) -> pa.Table:
    """Returns the listed duplicates of all shards, group by group."""
    joined = pa.concat_tables([_MEMBER_SCHEMA.empty_table(), *parts])
    return joined.sort_by([("group", "ascending"), ("record", "ascending")]).drop_columns(
        ["record"]
    )


def shown_groups(members: pa.Table) -> list[list[dict[str, Any]]]:
    """Returns the members of the groups in the report: of the first groups with conflicting labels,
    as many labels as there is room for.
    """
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in members.filter(members["conflicting"]).to_pylist():
        if row["group"] in groups or len(groups) < SHOWN_GROUPS:
            groups.setdefault(row["group"], []).append(row)
    return [_shown_members(rows) for rows in groups.values()]


def _shown_members(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    numbers = ranks(np.array([row["label"] for row in rows]))
    chosen = np.lexsort((np.arange(len(rows)), numbers))[:SHOWN_MEMBERS]
    return [rows[i] for i in sorted(chosen.tolist())]
