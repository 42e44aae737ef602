"""The demo's findings, shown in the terminal from the worst predictions to the next command."""

from __future__ import annotations

from rich.console import Console

from pipeline.demonstration import gallery, workspace
from pipeline.demonstration.digits import Digits
from pipeline.demonstration.findings import Findings
from pipeline.demonstration.picture import picture
from transforms.storage import filesystems

_PICTURE = "demo.png"


def show(directory: str, train: Digits, test: Digits) -> None:
    """Prints the findings of the run in `directory`, and writes its picture."""
    findings = Findings.read(workspace.results_of(directory), train, test)
    console = Console(highlight=False)
    _show_predictions(console, findings, train, test)
    print("\nWhich training labels are wrong? Self-influence, which was not told, sorts them:\n")
    console.print(gallery.found_table(findings.inspection))
    print("\nThe first suspects:\n")
    console.print(gallery.suspects_table(findings.inspection, train, console))
    png = picture(findings.traced, findings.inspection, test, train)
    filesystems.write(directory, _PICTURE, png, 1)
    rows = filesystems.join(workspace.results_of(directory), "influence-00000.jsonl")
    print(f"\nLook at   {filesystems.join(directory, _PICTURE)}")
    print(f"Rows      {rows} and .parquet, one per test digit")
    print("Try next  to score the same features by direction alone, not by size:\n")
    print(workspace.typed("score", workspace.score_flags(directory)))


def _show_predictions(console: Console, findings: Findings, train: Digits, test: Digits) -> None:
    print(
        f"\nThe network reads {findings.right:.1%} of the test digits right. Here are the "
        f"{len(findings.traced)} it reads worst."
    )
    print("Proponents pulled it towards the true label, opponents away from it:\n")
    console.print(gallery.traced_table(findings.traced, test, train, console))
    opponents = [opponent for digit in findings.traced for opponent in digit.opponents]
    planted = sum(bool(train.planted[opponent.row]) for opponent in opponents)
    chance = len(opponents) * train.planted.mean()
    print(
        f"\n{planted} of their {len(opponents)} strongest opponents have a planted wrong label "
        f"(chance: {chance:.1f})."
    )
