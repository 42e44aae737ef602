"""The documents say what is true: their commands run, and the names in them exist."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pathlib
import re
import shlex
from collections.abc import Iterator

import orjson
import pytest

from pipeline import cli
from pipeline.flags.declarations.commands import COMMANDS, flags_of
from transforms import read_rows
from transforms.examples import rejects
from transforms.influence.records import RecordScoring
from transforms.storage.records import feature_record

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "templates" / "README.md",
    *PAGES,
]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
# Of other programs: Beam, make, gcloud, pip, benchmarks.
OTHER_FLAGS = {
    "data", "direct_num_workers", "direct_running_mode", "dry_run", "experiments", "help",
    "location", "project", "recursive", "region", "results", "runner", "sdk_container_image",
    "setup_file", "short", "temp_location", "upgrade", "workload", "parts", "pdb",
}  # fmt: skip


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    return "".join(blocks(text, "sh")).replace("\\\n", "").splitlines()


def run(command: str) -> str:
    program, *words = shlex.split(command)
    assert program == "tracin", command
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = cli.main(words)
    assert status == 0, command
    return out.getvalue()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs every command of the tutorial, in order, in an empty directory; returns its output by
    command, and the first row of the influence as `row`.
    """
    directory = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        printed = {command: run(command) for command in commands(TUTORIAL)}
    rows = (directory / "out" / "influence-00000.jsonl").read_text()
    return {**printed, "row": rows.splitlines()[0], "directory": str(directory)}


@pytest.fixture
def beside_the_demo(outputs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo-output").symlink_to(pathlib.Path(outputs["directory"]) / "demo-output")
    monkeypatch.chdir(tmp_path)


def test_the_tutorial_prints_what_it_shows(outputs: dict[str, str]) -> None:
    (shown,) = blocks(TUTORIAL, "text")
    (printed,) = (text for command, text in outputs.items() if "--output=out" in command.split())
    # Times differ from run to run, and trained weights, so sizes of numbers in text and what is
    # skipped, from one processor to another.
    volatile = re.compile(r"took [\d.]+ s|[\d.]+ [KM]B|[\d.]+ %|[\d,]+ scored exactly")
    # The page wraps long lines.
    assert volatile.sub("…", printed).split() == volatile.sub("…", shown).split()


def test_the_shown_row_has_the_fields_of_a_real_one(outputs: dict[str, str]) -> None:
    (shown,) = (orjson.loads(block) for block in blocks(TUTORIAL, "json"))
    real = orjson.loads(outputs["row"])
    assert list(shown) == list(real) == RecordScoring().schema("class", 10).names
    # Which examples and scores they are may differ with the processor that trains the network.
    for name in ("proponents", "opponents"):
        assert [list(one) for one in shown[name]] == [list(one) for one in real[name]]


@pytest.mark.usefixtures("beside_the_demo")
def test_the_commands_of_the_readme_run() -> None:
    printed = [run(command) for command in commands(README.read_text())]
    assert len(printed) == 3
    assert "suspects" in printed[-1]


@pytest.mark.usefixtures("beside_the_demo")
def test_the_program_of_the_readme_runs(tmp_path: pathlib.Path) -> None:
    (program,) = blocks(README.read_text(), "python")
    exec(program, {})
    assert len(read_rows(str(tmp_path / "py" / "influence"))) == 400


def test_the_readme_lists_every_command() -> None:
    rows = re.findall(r"^\| (`tracin .*?) \|", README.read_text(), flags=re.MULTILINE)
    assert sorted(re.findall(r"`tracin (\w+)`", " ".join(rows))) == sorted(COMMANDS)


def test_documents_are_short_and_narrow() -> None:
    for page in DOCUMENTS:
        lines = page.read_text().splitlines()
        assert len(lines) <= (120 if page == README else 150), page
        # A table's row cannot be broken.
        wide = [line for line in lines if len(line) > 100 and not line.startswith("|")]
        assert not wide, (page, wide)


def named(pattern: str) -> Iterator[tuple[pathlib.Path, str]]:
    for page in DOCUMENTS:
        for match in re.findall(pattern, page.read_text(), flags=re.MULTILINE):
            yield page, match


def test_flags_that_documents_name_exist() -> None:
    real = {flag.name for command in COMMANDS for flag in flags_of(command)} | OTHER_FLAGS
    for page, name in named(r"(?<![\w-])--([a-z]\w+)"):
        assert name in real, (page, name)


def test_commands_that_documents_name_exist() -> None:
    for page, name in named(r"`(?:\.venv/bin/)?tracin ([a-z]+)"):
        assert name in COMMANDS, (page, name)


def test_files_that_documents_name_exist() -> None:
    paths = list(
        named(r"(?<![\w/.-])((?:transforms|pipeline|tests|benchmarks|templates|docs)/[\w./-]*\w)")
    )
    assert len(paths) > 40
    for page, path in paths:
        # Made by a user, or by a benchmark; or the name of any.
        if not re.search(r"terraform\.tfvars$|/results|[A-Z]{4}|templates/COMMAND", path):
            assert (ROOT / path).exists(), (page, path)


def test_the_table_of_rooms_is_complete() -> None:
    rooms = set(re.findall(r"^\| `([\w/]+)` \|", (ROOT / "docs/design/graph.md").read_text(), re.M))
    packages = {
        str(path.parent.relative_to(ROOT))
        for root in ("transforms", "pipeline")
        for path in (ROOT / root).glob("*/**/__init__.py")
    }
    # Declarations are part of the flags.
    assert rooms == packages - {"pipeline/flags/declarations"}


def test_steps_that_documents_draw_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "transforms").rglob("*.py"))
    steps = list(named(r"─(\w+)→"))
    assert len(steps) > 25
    for page, step in steps:
        assert re.search(rf'"{step}"|(class|def) {step}\b', source), (page, step)


def test_modules_that_documents_name_can_be_run() -> None:
    modules = list(named(r"python -m ([\w.]+)"))
    assert {module for _, module in modules} >= {"benchmarks.scoring", "benchmarks.audit"}
    for page, module in modules:
        assert importlib.util.find_spec(module), (page, module)


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    names = {name for _, name in named(r"(?:`|^    )make ([a-z][a-z-]*)")}
    assert {"demo", "test", "docs", "figures"} <= names <= targets, names - targets


def test_links_lead_to_files() -> None:
    for page in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_record_fields_and_reasons_are_documented() -> None:
    formats = ROOT / "docs" / "formats"
    records = (formats / "feature_sets.md").read_text()
    for field in feature_record.FIELDS:
        assert f"`{field}`" in records, field
    reasons = [
        value for name, value in vars(rejects).items() if name.isupper() and isinstance(value, str)
    ]
    assert len(reasons) > 10
    for reason in reasons:
        assert f"`{reason}`" in (formats / "examples.md").read_text(), reason
