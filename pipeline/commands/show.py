"""`tracin show`: what an audit or an influence result holds, in the terminal."""

from __future__ import annotations

import dataclasses
import io
import itertools
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import orjson
import pyarrow.parquet as pq
from rich.console import Console

from pipeline.running.command import Command, Invocation
from pipeline.terminal import rows
from pipeline.terminal.audit import audit
from pipeline.terminal.influence import influence, recall
from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import Manifest

# Columns of a terminal that is none, such as a file.
_WIDTH = 160


@dataclasses.dataclass(frozen=True)
class Show(Command):
    """A result in the terminal: its summary and first rows, or one example in full.

    Attributes:
        directory: the result.
        manifest: its manifest.
        example_id: the example to show in full, if any.
        limit: the number of rows to show otherwise.
    """

    name: ClassVar[str] = "show"
    directory: str
    manifest: Manifest
    example_id: str | None
    limit: int

    @classmethod
    def prepare(cls, invocation: Invocation) -> Show:
        """Reads the manifest."""
        args = invocation.args
        manifest = manifests.read_if_any(args.directory, "directory")
        if manifest is None:
            raise InputError(
                f"{args.directory} is not a complete result: it has no {manifests.FILE_NAME}"
            )
        if manifest.kind not in ("audit", "influence"):
            raise InputError(
                f"{args.directory} holds {manifest.kind}: give the directory of an audit or of "
                "influence"
            )
        return cls(args.directory, manifest, args.id, args.rows)

    def execute(self) -> None:
        """Prints the result."""
        console = Console(width=None if sys.stdout.isatty() else _WIDTH)
        if self.example_id is not None:
            self._show_example(console, self.example_id)
        elif self.manifest.kind == "audit":
            self._show_audit(console)
        else:
            self._show_influence(console)

    def _show_example(self, console: Console, example_id: str) -> None:
        console.print(rows.in_full(self._find(example_id)))
        if self.manifest.kind == "audit":
            duplicates = list(self._lines("duplicates.jsonl"))
            groups = {row["group"] for row in duplicates if row["example_id"] == example_id}
            others = [
                row
                for row in duplicates
                if row["group"] in groups and row["example_id"] != example_id
            ]
            if others:
                console.print("\nduplicates of it:", rows.table(rows.DUPLICATE, others))

    def _show_audit(self, console: Console) -> None:
        (summary,) = self._lines("summary.json")
        print(audit(self.directory, summary))
        suspects = itertools.islice(self._lines("suspects.jsonl"), self.limit)
        console.print(rows.table(rows.SUSPECT, suspects))
        conflicting = (row for row in self._lines("duplicates.jsonl") if row["conflicting"])
        if duplicates := list(itertools.islice(conflicting, self.limit)):
            table = rows.table(rows.DUPLICATE, duplicates)
            console.print("\nduplicates whose labels conflict:", table)

    def _show_influence(self, console: Console) -> None:
        print(influence(self.directory, self.manifest))
        if "index" in self.manifest.settings:
            files = [file for file in self.manifest.files if file.name == "recall.json"]
            print(recall(filesystems.read_verified(self.directory, files[0]) if files else None))
        summed = self.manifest.settings.get("sum_positions")
        columns = rows.SUMMED_INFLUENCE if summed else rows.INFLUENCE
        first = itertools.islice(self._lines(".jsonl"), self.limit)
        console.print(rows.influence_table(columns, first))

    def _lines(self, ending: str) -> Iterator[dict[str, Any]]:
        """Yields the JSON of the files whose names end so: of each line, or of the whole file."""
        for file in self.manifest.files:
            if file.name.endswith(ending):
                data = filesystems.read_verified(self.directory, file)
                parts = data.splitlines() if file.name.endswith("l") else [data]
                yield from map(orjson.loads, parts)

    def _find(self, example_id: str) -> dict[str, Any]:
        """Returns the row of an example.

        Raises:
            InputError: there is none with this id.
        """
        audited = self.manifest.kind == "audit"
        prefix, key = ("examples-", "example_id") if audited else ("influence-", "test_id")
        for file in self.manifest.files:
            if file.name.startswith(prefix) and file.name.endswith(".parquet"):
                data = io.BytesIO(filesystems.read_verified(self.directory, file))
                for row in pq.read_table(data, filters=[(key, "=", example_id)]).to_pylist():
                    return dict(row)
        noun = "example" if audited else "test example"
        raise InputError(
            f"{self.directory} has no {noun} with the id {example_id!r}: ids are printed without "
            f"--id, and are in {prefix}*.parquet"
        )


run = Show.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
