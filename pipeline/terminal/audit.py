"""A result of an audit: suspects, duplicates, and what changed since an earlier audit."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.terminal.amounts import count

# Pairs of a label and the one suggested for it that a person reads at a glance.
_CONFUSIONS = 5


def audit(directory: str, summary: Mapping[str, Any]) -> str:
    """Returns the summary of an audit: its suspects, and the labels that most of them have.

    Args:
        directory: the audit.
        summary: the content of its `summary.json`.
    """
    lines = [
        f"audit: {count(summary['examples'], 'example')}, {count(summary['suspects'], 'suspect')} "
        f"(suspicion of {summary['min_suspicion']:g} or more), about "
        f"{summary['expected_wrong_labels']:,.0f} wrong labels expected, at {directory}",
        *_confusions(summary),
        *_duplicates(summary),
    ]
    if left_out := summary.get("test", {}).get("slice_keys_left_out"):
        lines.append(f"  too many values to be slices, left out: {', '.join(left_out)}")
    lines += [
        f"  {row['what']} is {row['found']:.4g}, more than --{row['threshold']}={row['limit']:g}"
        for row in summary["crossed"]
    ]
    lines.append(f"  open {posixpath.join(directory, 'report.html')} in a browser")
    if "drift" in summary:
        lines += _drift(summary["drift"])
    return "\n".join(lines)


def _confusions(summary: Mapping[str, Any]) -> Iterator[str]:
    if summary["listed_suspects"] < summary["suspects"]:
        yield f"  {summary['listed_suspects']:,} of them are listed: see --max_suspects_per_class"
    for row in summary["confusions"][:_CONFUSIONS]:
        label, suggested = row["label"], row["suggested_label"]
        fault = "may be another" if suggested == label else f"look like {suggested}"
        yield f"  {row['suspects']:,} labelled {label}, {fault}"


def _duplicates(summary: Mapping[str, Any]) -> Iterator[str]:
    # Audits of earlier versions looked for none.
    duplicates = summary.get("duplicates")
    if duplicates and not duplicates["conflicting_groups"]:
        yield "  no duplicates whose labels conflict"
    elif duplicates:
        yield (
            f"  {duplicates['conflicting_examples']:,} examples in "
            f"{count(duplicates['conflicting_groups'], 'group')} of duplicates whose labels "
            "conflict"
        )


def _drift(drift: Mapping[str, Any]) -> Iterator[str]:
    yield f"since {drift['previous']['directory']}:"
    for kind in ("examples", "suspects"):
        yield f"  {kind}: " + ", ".join(f"{n:,} {name}" for name, n in drift[kind].items())
    measured = [row for row in drift["classes"] if row["distance"] is not None]
    if measured:
        most = max(measured, key=lambda row: row["distance"])
        yield (
            f"  self-influence shifted most among those labelled {most['label']} (distance "
            f"{most['distance']:.3f}, p-value {most['p_value']:.2g})"
        )
