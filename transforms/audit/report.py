"""The report of an audit, `report.html`: a page with the classes, the suspects and their pictures,
duplicates, influence on the test set, and distributions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from transforms.audit.config import AuditPlan
from transforms.core.origins import Origin
from transforms.duplicates.neighbours import FindNeighbours, Queries
from transforms.reports import pages
from transforms.reports.previews import Preview
from transforms.reports.read_previews import read_previews

# Neighbours of each suspect: a row of small pictures below its own.
_NEIGHBOURS = 3

# Largest number of labels whose pairs are shown as a table: more columns are hard to read.
_MOST_COLUMNS = 30


def render(
    summary: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    previews: Mapping[tuple[str, int], Preview],
    class_names: Sequence[str] | None = None,
    neighbours: Sequence[Mapping[str, Any]] = (),
    groups: Sequence[Sequence[Mapping[str, Any]]] = (),
    note: str | None = None,
) -> bytes:
    """Renders the report of an audit, in UTF-8.

    Args:
        summary: content of `summary.json`.
        shown: rows of suspects, as in `suspects.jsonl`, the most suspicious first.
        previews: by (source, offset) the previews of their examples; some may be missing.
        class_names: names of all classes, or None for their numbers.
        neighbours: rows of `duplicates.neighbours`; `example` is the index of a row in `shown`.
        groups: groups of duplicates with conflicting labels, their members as in
            `duplicates.jsonl`.
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
        most_columns=_MOST_COLUMNS,
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
    """The suspects of each label by suggested label; None where there are too many classes."""
    counts = {
        (row["label"], suggested["label"]): suggested["suspects"]
        for row in summary["classes"]
        for suggested in row["suggested"]
    }
    labels = sorted(
        {label for pair in counts for label in pair} | {row["label"] for row in summary["classes"]}
    )
    if not counts or len(labels) > _MOST_COLUMNS:
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
    """The bars of a histogram; their heights in per cent, by the logarithm of the counts."""
    most = max((bar["examples"] for bar in bins), default=0)
    bars = [
        {
            "description": f"{axis} from {bar['from']:.3g} to {bar['to']:.3g}: {bar['examples']:,}",
            "height": 100 * math.log1p(bar["examples"]) / math.log1p(most) if most else 0,
        }
        for bar in bins
    ]
    ends = (f"{bins[0]['from']:.3g}", f"{bins[-1]['to']:.3g}") if bins else ("", "")
    return {"title": title, "bars": bars, "low": ends[0], "high": ends[1], "most": most}


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """The examples of the report.

    Attributes:
        suspects: rows, with a column `record`; see `rows.to_table`.
        groups: of duplicates, the members of each; see `selection.shown_groups`.
    """

    suspects: pa.Table
    groups: list[list[dict[str, Any]]]


@dataclasses.dataclass
class IllustrateReport(beam.PTransform):
    """Finds the neighbours of the shown suspects and reads the previews of all shown examples.

    Input: `shown`: Shown (one), and `train`, `directions` and `plan` of `AuditLabels`.

    Output: `neighbours`: pa.Table (at most one), and `previews`: ((source, offset), Preview).
    """

    def expand(self, inputs: Mapping[str, beam.PCollection]) -> dict[str, beam.PCollection]:
        plan = beam.pvalue.AsSingleton(inputs["plan"])
        queries = inputs["shown"] | "QueryNeighbours" >> beam.FlatMap(_query)  # Queries
        neighbours = (
            inputs["train"],
            inputs["directions"],
            queries,
        ) | "FindNeighbours" >> FindNeighbours(_NEIGHBOURS)  # pa.Table
        previews = (
            inputs["shown"]
            | "ListShown"
            >> beam.FlatMap(_list_shown, beam.pvalue.AsList(neighbours), plan)  # (source, [Origin])
            | "SpreadSources" >> beam.Reshuffle()  # (source, [Origin])
            | "ReadPreviews" >> beam.FlatMap(_read, plan)  # ((source, offset), Preview)
        )
        return {"neighbours": neighbours, "previews": previews}


def _query(shown: Shown) -> Iterator[Queries]:
    """The shown suspects as queries, if there are any."""
    rows = shown.suspects
    if rows.num_rows:
        yield Queries(*(rows[name].to_numpy() for name in ("record", "label", "suggested_label")))


def _list_shown(
    shown: Shown, neighbours: Sequence[pa.Table], plan: AuditPlan
) -> Iterator[tuple[str, list[Origin]]]:
    """The examples of the report by the file that holds them: (source, [Origin])."""
    if plan.preview_format is None:
        return
    rows = shown.suspects.select(["source", "offset", "content_digest"]).to_pylist()
    rows += [row for group in shown.groups for row in group]
    digests = {(row["source"], row["offset"]): bytes.fromhex(row["content_digest"]) for row in rows}
    digests |= {
        (row["source"], row["offset"]): row["content_digest"]
        for table in neighbours
        for row in table.to_pylist()
    }
    by_source: dict[str, list[Origin]] = {}
    for (source, offset), digest in digests.items():
        by_source.setdefault(source, []).append(Origin(source, offset, digest))
    yield from by_source.items()


def _read(
    grouped: tuple[str, list[Origin]], plan: AuditPlan
) -> Iterator[tuple[tuple[str, int], Preview]]:
    assert plan.preview_format  # else nothing was listed
    yield from read_previews(grouped, plan.preview_format)
