"""`tracin show`: what an audit or an influence result holds, in the terminal."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.flags import parser
from pipeline.running import runner
from pipeline.terminal import report
from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import Manifest

_SUSPECT = (
    "example_id",
    "label",
    "suggested_label",
    "suspicion",
    "self_influence",
    "source",
    "offset",
)
_DUPLICATE = (
    "group",
    "example_id",
    "label",
    "suggested_label",
    "similarity",
    "suspicion",
    "source",
    "offset",
)
_INFLUENCE = ("test_id", "test_label", "test_prediction", "test_probability", "self_influence")
_SUMMED = (
    "test_id",
    "test_positions",
    "test_wrong_positions",
    "test_label_probability",
    "self_influence",
)
_CANDIDATE = ("train_id", "train_label", "score")


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("show", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("show", argv)
    runner.beam_options(flags)
    found = manifests.read_if_any(args.directory, "DIR")
    if found is None:
        raise InputError(
            f"{args.directory} is not a complete result: it has no {manifests.FILE_NAME}"
        )
    if found.kind not in ("audit", "influence"):
        raise InputError(
            f"{args.directory} holds {found.kind}: give the directory of an audit or of influence"
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    audited = found.kind == "audit"
    if args.id is not None:
        console.print(_one(_find(args.directory, found, args.id)))
        if audited and (duplicates := _duplicates_of(args.directory, found, args.id)):
            console.print("\nduplicates of it:", _table(_DUPLICATE, duplicates))
    elif audited:
        (summary,) = _lines(args.directory, found, "summary.json")
        print(report.audit(args.directory, summary))
        console.print(
            _table(
                _SUSPECT,
                itertools.islice(_lines(args.directory, found, "suspects.jsonl"), args.rows),
            )
        )
        conflicting = (
            row for row in _lines(args.directory, found, "duplicates.jsonl") if row["conflicting"]
        )
        if duplicates := list(itertools.islice(conflicting, args.rows)):
            console.print("\nduplicates whose labels conflict:", _table(_DUPLICATE, duplicates))
    else:
        print(report.influence(args.directory, found))
        if "index" in found.settings:
            told = [file for file in found.files if file.name == "recall.json"]
            print(
                report.recall(filesystems.read_verified(args.directory, told[0]) if told else None)
            )
        rows = itertools.islice(_lines(args.directory, found, ".jsonl"), args.rows)
        names = _SUMMED if found.settings.get("sum_positions") else _INFLUENCE
        console.print(_table((*names, "proponent", "opponent"), (_strongest(row) for row in rows)))


def _lines(directory: str, found: Manifest, ending: str) -> Iterator[dict[str, Any]]:
    """The JSON of the files whose names end so: of each line, or of the whole."""
    for file in found.files:
        if file.name.endswith(ending):
            data = filesystems.read_verified(directory, file)
            yield from map(orjson.loads, data.splitlines() if file.name.endswith("l") else [data])


def _duplicates_of(directory: str, found: Manifest, wanted: str) -> list[dict[str, Any]]:
    """The others of an example's group of duplicates."""
    rows = list(_lines(directory, found, "duplicates.jsonl"))
    groups = {row["group"] for row in rows if row["example_id"] == wanted}
    return [row for row in rows if row["group"] in groups and row["example_id"] != wanted]


def _find(directory: str, found: Manifest, wanted: str) -> dict[str, Any]:
    """The row of an example.

    Raises:
        InputError: there is none with this id.
    """
    prefix, key = (
        ("examples-", "example_id") if found.kind == "audit" else ("influence-", "test_id")
    )
    for file in found.files:
        if file.name.startswith(prefix) and file.name.endswith(".parquet"):
            data = io.BytesIO(filesystems.read_verified(directory, file))
            for row in pq.read_table(data, filters=[(key, "=", wanted)]).to_pylist():
                return dict(row)
    what = "example" if found.kind == "audit" else "test example"
    raise InputError(
        f"{directory} has no {what} with the id {wanted!r}: ids are told without --id, or stand in "
        f"{prefix}*.parquet"
    )


def _strongest(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of influence with the first of its proponents and opponents."""
    told = {name: row[name][0] if row[name] else None for name in ("proponents", "opponents")}
    return {
        **row,
        "proponent": told["proponents"] and _candidate(told["proponents"]),
        "opponent": told["opponents"] and _candidate(told["opponents"]),
    }


def _candidate(one: Mapping[str, Any]) -> str:
    told = (
        f"labelled {one['train_label']}"
        if "train_label" in one
        else f"{one['train_positions']:,} positions"
    )
    return f"{one['train_id']} ({told}) {one['score']:+.4g}"


def _one(row: Mapping[str, Any]) -> Table:
    """A row, a line for each of its fields, and of each candidate."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in row.items():
        if name in ("proponents", "opponents"):
            for i, one in enumerate(value):
                table.add_row("" if i else name, _text(_candidate(one)))
        else:
            table.add_row(name, _text(value))
    return table


def _table(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(row[name]) for name in names))
    return table


def _text(value: Any) -> Text:
    """A value; what a terminal would take for a command, or print out of its order, is shown as a
    mark.
    """
    told = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return Text(
        "".join(
            character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
            for character in told
        )
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
