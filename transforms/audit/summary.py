"""The summary of an audit, `summary.json`: counts, a table of the classes, drift, influence on the
test set, duplicates, and the thresholds that are crossed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from transforms.audit import drift, selection
from transforms.audit.config import THRESHOLDS, AuditConfig, AuditPlan
from transforms.audit.drift import Changes, Distributions
from transforms.audit.rows import influence_on
from transforms.audit.slices import Slices
from transforms.duplicates.find import Duplicates
from transforms.storage import filesystems
from transforms.storage.manifests import Manifest

# Pairs of a label and a suggested label in the summary, those with the most suspects.
_CONFUSIONS = 20
# Bars of the histogram of suspicion: a twentieth each.
_SUSPICION_BINS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums over the examples of each label.

    Attributes:
        examples, correct, suspects: [K] int64: all, those that the last checkpoint predicts as
            labelled, and the suspects.
        expected_wrong, self_influence: [K] float64, sums of suspicion and of self-influence.
        suggested: [m, 3] int64, rows of label, suggested label and number of suspects.
        suspicions: [20] int64, examples by suspicion.
        influences: examples by self-influence.
        between: [K, K] float64, sums of the mean influence on the test examples of each label, NaN
            for a label without any; or None.
    """

    examples: np.ndarray
    correct: np.ndarray
    suspects: np.ndarray
    expected_wrong: np.ndarray
    self_influence: np.ndarray
    suggested: np.ndarray
    suspicions: np.ndarray
    influences: Distributions
    between: np.ndarray | None = None

    @staticmethod
    def of(table: pa.Table, classes: int, min_suspicion: float) -> ClassSums:
        """Sums rows."""
        label, prediction, suggested, suspicion, influence = (
            table[name].to_numpy()
            for name in ("label", "prediction", "suggested_label", "suspicion", "self_influence")
        )
        suspected = suspicion >= min_suspicion
        pairs = [label[suspected], suggested[suspected], np.ones(suspected.sum(), np.int64)]
        by_label = influence_on(table, "test_influence_by_label")
        return ClassSums(
            np.bincount(label, minlength=classes),
            np.bincount(label[prediction == label], minlength=classes),
            np.bincount(label[suspected], minlength=classes),
            np.bincount(label, suspicion, classes),
            np.bincount(label, influence, classes),
            _count_pairs(np.stack(pairs, axis=1)),
            np.histogram(suspicion, _SUSPICION_BINS, (0, 1))[0],
            Distributions.of(np.zeros_like(label), influence),
            None
            if by_label is None
            else np.stack([np.bincount(label, column, classes) for column in by_label.T], axis=1),
        )

    @staticmethod
    def add(parts: Sequence[ClassSums]) -> ClassSums:
        """Adds sums, in the given order."""
        first, *others = parts
        for part in others:
            first = ClassSums(
                first.examples + part.examples,
                first.correct + part.correct,
                first.suspects + part.suspects,
                first.expected_wrong + part.expected_wrong,
                first.self_influence + part.self_influence,
                _count_pairs(np.concatenate([first.suggested, part.suggested])),
                first.suspicions + part.suspicions,
                Distributions.merge([first.influences, part.influences]),
                None
                if first.between is None or part.between is None
                else first.between + part.between,
            )
        return first

    @property
    def mean_self_influence(self) -> np.ndarray:
        """The mean self-influence of each label, [K]; 0 without examples."""
        return self.self_influence / np.maximum(self.examples, 1)


def _count_pairs(rows: np.ndarray) -> np.ndarray:
    """Rows (label, suggested label, count) [m, 3], with the counts of equal pairs added."""
    pairs, indices = np.unique(rows[:, :2], axis=0, return_inverse=True)
    counts = np.zeros(len(pairs), np.int64)
    np.add.at(counts, indices.reshape(-1), rows[:, 2])
    return np.concatenate([pairs, counts[:, None]], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSummary:
    """The part of the summary that a shard of rows gives.

    Attributes:
        sums: sums by label.
        extremes: rows; see `selection.extremes`.
        slices: slices of the test set, or None.
        slice_sums: [S'] float64, sums of the mean influence on each slice by a key.
        slice_extremes: rows; see `selection.slice_extremes`.
    """

    sums: ClassSums
    extremes: pa.Table
    slices: Slices | None
    slice_sums: np.ndarray
    slice_extremes: pa.Table

    @staticmethod
    def of(
        table: pa.Table, slices: Slices | None, classes: int, min_suspicion: float
    ) -> ShardSummary:
        """Summarises rows."""
        by_slice = influence_on(table, "test_influence_by_slice")
        return ShardSummary(
            ClassSums.of(table, classes, min_suspicion),
            selection.extremes(table),
            slices,
            np.zeros(0) if by_slice is None else by_slice.sum(axis=0),
            selection.slice_extremes(table, slices),
        )


def summarize(
    parts: Sequence[ShardSummary],
    changes: Sequence[Changes],
    duplicates: Duplicates,
    counts: Mapping[str, int],
    config: AuditConfig,
    plan: AuditPlan,
) -> dict[str, Any]:
    """Returns the content of `summary.json`.

    Args:
        parts: of all shards, in their order.
        changes: of all buckets, in their order; empty without a previous audit.
        duplicates: of the training set.
        counts: how many `suspects` and `duplicates` are listed.
        config: settings.
        plan: decisions.
    """
    sums = ClassSums.add([part.sums for part in parts])
    summary = _summarize_labels(sums, counts["suspects"], config.min_suspicion)
    summary["settings"] = dict(plan.draft.settings)
    if plan.previous:
        previous = {
            "directory": config.previous,
            "fingerprint": plan.previous.fingerprint,
            **plan.previous.counts,
        }
        summary["drift"] = drift.summarize(changes, previous)
    chosen = pa.concat_tables([part.extremes for part in parts])
    if chosen.num_rows:
        summary["test"] = _summarize_test(chosen, sums)
        slices = parts[0].slices
        if slices and (slices.named or slices.left_out):
            means = np.sum([part.slice_sums for part in parts], axis=0) / sums.examples.sum()
            ends = pa.concat_tables([part.slice_extremes for part in parts])
            summary["test"]["slices"] = _summarize_slices(slices, means, ends)
            summary["test"]["slice_keys_left_out"] = list(slices.left_out)
    summary["duplicates"] = _summarize_duplicates(
        duplicates, counts["duplicates"], config.min_similarity
    )
    summary["crossed"] = crossed(summary, config)
    return summary


def _summarize_labels(sums: ClassSums, listed: int, min_suspicion: float) -> dict[str, Any]:
    by_count = sorted(sums.suggested.tolist(), key=lambda row: (-row[2], row[0], row[1]))
    return {
        "examples": int(sums.examples.sum()),
        "accuracy": int(sums.correct.sum()) / int(sums.examples.sum()),
        "suspects": int(sums.suspects.sum()),
        "listed_suspects": listed,
        "min_suspicion": min_suspicion,
        "expected_wrong_labels": float(sums.expected_wrong.sum()),
        "confusions": [
            {"label": label, "suggested_label": suggested, "suspects": count}
            for label, suggested, count in by_count[:_CONFUSIONS]
        ],
        "classes": _summarize_classes(sums, by_count),
        "suspicion_histogram": [
            {"from": i / _SUSPICION_BINS, "to": (i + 1) / _SUSPICION_BINS, "examples": int(count)}
            for i, count in enumerate(sums.suspicions)
        ],
        "self_influence_histogram": [
            {"from": low, "to": high, "examples": count}
            for low, high, count in sums.influences.octaves()
        ],
    }


def _summarize_classes(sums: ClassSums, by_count: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """A row for each label with examples; `by_count` are the rows of `suggested`, by count."""
    total = float(sums.self_influence.sum())
    table = []
    for k in np.flatnonzero(sums.examples).tolist():
        examples = int(sums.examples[k])
        table.append(
            {
                "label": k,
                "examples": examples,
                "accuracy": int(sums.correct[k]) / examples,
                "suspects": int(sums.suspects[k]),
                "expected_wrong_labels": float(sums.expected_wrong[k]),
                "mean_self_influence": float(sums.self_influence[k]) / examples,
                "self_influence_share": float(sums.self_influence[k]) / total if total else 0.0,
                "suggested": [
                    {"label": suggested, "suspects": count}
                    for label, suggested, count in by_count
                    if label == k
                ],
            }
        )
    return table


def _summarize_test(chosen: pa.Table, sums: ClassSums) -> dict[str, Any]:
    """Influence on the test set; `chosen` are the extremes of all shards."""
    columns = ("example_id", "label", "suggested_label", "suspicion", "test_influence")
    rows = selection.extremes(chosen).select(columns).to_pylist()
    count = selection.EXTREMES
    test: dict[str, Any] = {
        "helpful": [row for row in rows[::-1][:count] if row["test_influence"] > 0],
        "harmful": [row for row in rows[:count] if row["test_influence"] < 0],
    }
    if sums.between is not None:
        means = sums.between / np.maximum(sums.examples, 1)[:, None]
        test["between_labels"] = [
            {"label": k, "on": [None if np.isnan(mean) else mean for mean in means[k].tolist()]}
            for k in np.flatnonzero(sums.examples).tolist()
        ]
    return test


def _summarize_slices(slices: Slices, means: np.ndarray, ends: pa.Table) -> list[dict[str, Any]]:
    """A row for each slice by a key; the largest name the examples that help and harm most."""
    largest = set(selection.largest_slices(slices).tolist())
    count = selection.SLICE_EXTREMES
    table = []
    for i, (key, value) in enumerate(slices.named):
        row: dict[str, Any] = {
            "key": key,
            "value": value,
            "examples": int(slices.counts[slices.labels + i]),
            "mean_influence": float(means[i]),
        }
        if i in largest:
            own = selection.ends_of_slice(ends, i)
            row["helpful"] = [end for end in own[::-1][:count] if end["influence"] > 0]
            row["harmful"] = [end for end in own[:count] if end["influence"] < 0]
        table.append(row)
    return table


def _summarize_duplicates(
    duplicates: Duplicates, listed: int, min_similarity: float
) -> dict[str, Any]:
    groups = duplicates.groups
    return {
        "min_similarity": min_similarity,
        "groups": len(np.unique(groups.numbers)),
        "examples": len(groups.records),
        "conflicting_groups": len(np.unique(groups.numbers[groups.conflicting])),
        "conflicting_examples": int(groups.conflicting.sum()),
        "listed_examples": listed,
        "pairs_left_out": duplicates.left_out,
    }


def crossed(summary: Mapping[str, Any], config: AuditConfig) -> list[dict[str, Any]]:
    """Returns the thresholds that a summary crosses: name, limit, value, and a description."""
    values: dict[str, tuple[float, str]] = {
        "max_suspect_fraction": (
            summary["suspects"] / summary["examples"],
            "the fraction of suspects among the examples",
        ),
    }
    if "drift" in summary:
        classes = summary["drift"]["classes"]
        shifts = [row["distance"] for row in classes if row["distance"] is not None]
        values["max_appeared_suspects"] = (
            summary["drift"]["suspects"]["appeared"],
            "the number of suspects that appeared",
        )
        values["max_shift"] = (
            max(shifts, default=0.0),
            "the largest shift of a class's self-influence",
        )
    limits = {name: getattr(config, name) for name in THRESHOLDS}
    return [
        {"threshold": name, "limit": limits[name], "found": value, "what": description}
        for name, (value, description) in values.items()
        if limits[name] is not None and value > limits[name]
    ]


def read_summary(directory: str, manifest: Manifest) -> dict[str, Any]:
    """Reads and verifies the summary of a committed audit.

    Raises:
        InputError: the file is gone or damaged.
    """
    (file,) = (file for file in manifest.files if file.name == "summary.json")
    summary: dict[str, Any] = orjson.loads(filesystems.read_verified(directory, file))
    return summary


def describe_crossed(directory: str, summary: Mapping[str, Any]) -> str:
    """Describes the thresholds that an audit crosses in one line."""
    descriptions = [
        f"{row['what']} is {row['found']:.4g}, `{row['threshold']}={row['limit']:g}`"
        for row in summary["crossed"]
    ]
    return f"{directory} is complete and crosses thresholds: {'; '.join(descriptions)}"
