"""The documents say what is true: their commands run, and their lists of flags are complete."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import shlex

import orjson
import pytest

from pipeline import cli
from pipeline.flags.declarations.commands import COMMANDS, flags_of
from transforms.examples import rejects
from transforms.influence.records import RecordScoring
from transforms.storage import feature_record

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DATA = (ROOT / "docs" / "data.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, str]:
    """Runs every command of the README's worked example, in order, in an empty directory; what each
    printed.
    """
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for command in "".join(blocks(README, "sh")).splitlines():
            program, *words = shlex.split(command)
            assert program == "tracin", command
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                status = cli.main(words)
            assert status == 0, command
            printed[command] = out.getvalue()
        printed["row"] = pathlib.Path("out/influence-00000.jsonl").read_text().splitlines()[0]
    return printed


def test_the_worked_example_runs_and_prints_what_it_shows(outputs):
    (shown,) = blocks(README, "text")
    (printed,) = (text for command, text in outputs.items() if "--output=out" in command.split())
    # Times differ from run to run, and trained weights, so sizes of numbers in text and what is
    # skipped, from one processor to another.
    volatile = re.compile(r"took [\d.]+ s|[\d.]+ [KM]B|[\d.]+ %|[\d,]+ scored exactly")
    assert volatile.sub("…", printed).strip() == volatile.sub("…", shown).strip()


def test_the_shown_row_has_the_fields_of_a_real_one(outputs):
    (shown,) = (orjson.loads(block) for block in blocks(README, "json"))
    real = orjson.loads(outputs["row"])
    assert list(shown) == list(real) == RecordScoring().schema("class", 10).names
    # Which examples and scores they are may differ with the processor that trains the network.
    for name in ("proponents", "opponents"):
        assert [list(one) for one in shown[name]] == [list(one) for one in real[name]]


def test_the_flag_table_is_complete_and_names_the_right_commands():
    documented: dict[str, set[str]] = {}
    for names, commands in re.findall(r"^\| (`--.*?) \| (.*?) \|", README, flags=re.MULTILINE):
        for name in re.findall(r"`(--\w+)`", names):
            documented[name] = set(COMMANDS) if commands == "all" else set(commands.split(", "))
    real: dict[str, set[str]] = {}
    for command in COMMANDS:
        for flag in flags_of(command):
            if not flag.positional:
                real.setdefault(flag.option, set()).add(command)
    assert documented == real


def test_make_targets_that_the_documents_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    assert {"demo", "test"} <= named <= targets, named - targets


def test_links_lead_to_files():
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "templates" / "README.md",
    ):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_record_fields_and_reasons_are_documented():
    for field in feature_record.FIELDS:
        assert f"`{field}`" in DATA, field
    reasons = [
        value for name, value in vars(rejects).items() if name.isupper() and isinstance(value, str)
    ]
    assert len(reasons) > 10
    for reason in reasons:
        assert f"`{reason}`" in DATA, reason


def test_every_benchmark_that_the_readme_names_can_be_started():
    named = re.findall(r"python -m (benchmarks\.\w+)", README)
    assert named
    for module in named:
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
