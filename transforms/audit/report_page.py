"""An audit as a page to read: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transforms.reports import pages
from transforms.reports.previews import Preview

# Classes of which all pairs are shown as a matrix.
_MATRIX_CLASSES = 30


def render(
    summary: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    previews: Mapping[tuple[str, int], Preview],
    class_names: Sequence[str] | None = None,
    neighbours: Sequence[Mapping[str, Any]] = (),
    groups: Sequence[Sequence[Mapping[str, Any]]] = (),
    note: str | None = None,
) -> bytes:
    """The page of an audit, in UTF-8.

    Args:
        summary: as in `summary.json`.
        shown: rows of suspects, as in `suspects.jsonl`, the most suspicious first.
        previews: of their examples, by (source, offset); those that are missing are left out.
        class_names: of all classes, or None for their numbers.
        neighbours: rows as in `neighbours`, `example` being the number of a row in `shown`.
        groups: of duplicates with conflicting labels, their members as in `duplicates.jsonl`.
        note: why there are no pictures, or None.
    """

    def preview(row: Mapping[str, Any]) -> Preview:
        return previews.get((row["source"], row["offset"]), Preview())

    near: list[list[Mapping[str, Any]]] = [[] for _ in shown]
    for row in neighbours:
        near[row["example"]].append(row)
    return pages.render(
        "audit_page.html.j2",
        preview,
        class_names,
        summary=summary,
        cards=list(zip(shown, near, strict=True)),
        groups=groups,
        note=note,
        problems=[problem for row in shown if (problem := preview(row).problem)],
        matrix=_matrix(summary),
        plots=[
            _plot("Examples by suspicion", "suspicion", summary["suspicion_histogram"]),
            _plot(
                "Examples by self-influence", "self-influence", summary["self_influence_histogram"]
            ),
        ],
        labels=sorted({row["label"] for row in shown}),
        suggested=sorted({row["suggested_label"] for row in shown}),
    )


def _matrix(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The suspects of each label by what they look like; None where there are too many classes."""
    counts = {
        (row["label"], one["label"]): one["suspects"]
        for row in summary["classes"]
        for one in row["suggested"]
    }
    labels = sorted(
        {label for pair in counts for label in pair} | {row["label"] for row in summary["classes"]}
    )
    if not counts or len(labels) > _MATRIX_CLASSES:
        return None
    most = max(counts.values())
    rows = [
        (
            label,
            [
                (counts.get((label, other), 0), counts.get((label, other), 0) / most)
                for other in labels
            ],
        )
        for label in labels
    ]
    return {"labels": labels, "rows": rows}


def _plot(title: str, axis: str, bins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bars of a histogram, their heights by the logarithm of the counts, as parts of a hundred."""
    most = max((one["examples"] for one in bins), default=0)
    bars = [
        {
            "told": f"{axis} from {one['from']:.3g} to {one['to']:.3g}: {one['examples']:,}",
            "height": 100 * math.log1p(one["examples"]) / math.log1p(most) if most else 0,
        }
        for one in bins
    ]
    ends = (f"{bins[0]['from']:.3g}", f"{bins[-1]['to']:.3g}") if bins else ("", "")
    return {"title": title, "bars": bars, "low": ends[0], "high": ends[1], "most": most}
