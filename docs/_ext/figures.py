"""Tables of figures that benchmarks wrote: the directive `figures`, and the README's tables.

A page includes the table `fashion` of `benchmarks/results/scoring.json` by

    ```{figures} scoring fashion
    ```

and several tables of equal columns as one by `{figures} scoring fashion imagenet`. A missing file
or table fails the build; `<!-- {figures} scoring fashion -->` stands for tables that have not been
measured yet. `python docs/_ext/figures.py` turns such comments into directives once all their
tables are there, and writes the README's table again: Sphinx does not build it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

# A table that no benchmark has written yet.
PENDING = re.compile(r"^<!-- \{figures\} (\S+) (\S.*) -->$", re.MULTILINE)
# A table in a file that Sphinx does not build, between two comments.
_EMBEDDED = re.compile(r"(<!-- figures (\S+) (\S.*) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


class MissingFigures(Exception):
    """No benchmark has written this table."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of figures, and how it came about.

    Attributes:
        columns: headings.
        rows: cells, texts or numbers.
        sources: commands, with the day and the machine of the run.
    """

    columns: list[str]
    rows: list[list[Any]]
    sources: list[str]

    def markdown(self) -> str:
        """Returns the table, with numbers aligned to the right, and its sources below."""
        numeric = [
            all(isinstance(row[i], int | float) for row in self.rows)
            for i in range(len(self.columns))
        ]
        lines = [
            self.columns,
            ["---:" if right else "---" for right in numeric],
            *([_cell(cell) for cell in row] for row in self.rows),
        ]
        sources = "; ".join(dict.fromkeys(self.sources))
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n*{sources}*\n"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value.replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def read(name: str, tables: str, results: pathlib.Path = RESULTS) -> Table:
    """Reads tables that the benchmark `name` wrote, their names separated by spaces, as one.

    Raises:
        MissingFigures: there is no such file, or no such table in it, or columns differ.
    """
    path = results / f"{name}.json"
    if not path.exists():
        raise MissingFigures(f"{path.name} is missing: run `python -m benchmarks.{name}`")
    content = json.loads(path.read_text())
    merged = Table([], [], [])
    for table in tables.split():
        if table not in content["tables"]:
            there = ", ".join(sorted(content["tables"]))
            raise MissingFigures(f"{path.name} has no table {table!r}, only {there}")
        # Each table says how it came about, or the file does for all.
        part = {**content, **content["tables"][table]}
        if merged.columns not in ([], part["columns"]):
            raise MissingFigures(f"{path.name}: the tables {tables} have different columns")
        merged = Table(
            part["columns"], merged.rows + part["rows"], [*merged.sources, _source(part)]
        )
    return merged


def _source(table: dict[str, Any]) -> str:
    machine = table.get("machine", {})
    count = machine.get("processors")
    processors = f"{count} processor{'s' if count != 1 else ''}" if count else ""
    parts = (f"`{table['command']}`", table.get("date"), machine.get("processor"), processors)
    return ", ".join(part for part in parts if part)


def embed(text: str, results: pathlib.Path = RESULTS) -> str:
    """Returns a text with the tables between its comments `figures` made anew."""

    def made(match: re.Match[str]) -> str:
        try:
            table = read(match[2], match[3], results).markdown()
        except MissingFigures:
            table = ""
        return f"{match[1]}{table}{match[4]}"

    return _EMBEDDED.sub(made, text)


def include(text: str, results: pathlib.Path = RESULTS) -> str:
    """Returns a page with directives instead of the comments whose tables are there."""

    def made(match: re.Match[str]) -> str:
        try:
            read(match[1], match[2], results)
        except MissingFigures:
            return match[0]
        return f"```{{figures}} {match[1]} {match[2]}\n```"

    return PENDING.sub(made, text)


def setup(app: Any) -> dict[str, bool]:
    """Registers the directive with Sphinx."""
    from sphinx.util.docutils import SphinxDirective

    class Figures(SphinxDirective):
        """Includes tables of figures as one: `figures BENCHMARK TABLE …`."""

        required_arguments = 2
        optional_arguments = 20

        def run(self) -> list[Any]:
            results = pathlib.Path(self.config.figures_directory)
            name, *tables = self.arguments
            self.env.note_dependency(str(results / f"{name}.json"))
            try:
                text = read(name, " ".join(tables), results).markdown()
                return self.parse_text_to_nodes(text)
            except MissingFigures as error:
                raise self.error(str(error)) from error

    app.add_config_value("figures_directory", str(RESULTS), "env")
    app.add_directive("figures", Figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(embed(readme.read_text()))
    for page in (ROOT / "docs").rglob("*.md"):
        page.write_text(include(page.read_text()))
