"""Tables of figures come from the benchmarks' files, and only from these."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import figures
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
RESULTS = {
    "tables": {
        "small": {
            "command": "python -m benchmarks.speed --small",
            "date": "2026-03-31",
            "machine": {"processor": "Abacus 9", "processors": 2, "python": "3.10.4"},
            "columns": ["way", "pairs/s", "part"],
            "rows": [["a|b", 1234567, 0.25], ["c", 8, 1.0]],
        },
    }
}
TABLE = """| way | pairs/s | part |
| --- | ---: | ---: |
| a\\|b | 1,234,567 | 0.25 |
| c | 8 | 1.0 |

*`python -m benchmarks.speed --small`, 2026-03-31, Abacus 9, 2 processors*
"""


@pytest.fixture
def results(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "results"
    directory.mkdir()
    (directory / "speed.json").write_text(json.dumps(RESULTS))
    return directory


def build(directory: pathlib.Path, results: pathlib.Path, page: str) -> tuple[int, str, str]:
    """Builds a site of one page strictly; returns exit status, messages and the page."""
    source = directory / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'docs' / '_ext')!r})\n"
        f"extensions = ['myst_parser', 'figures']\nfigures_directory = {str(results)!r}\n"
    )
    (source / "index.md").write_text(page)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", source, directory / "o"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    built = directory / "o" / "index.html"
    return done.returncode, done.stderr, built.read_text() if built.exists() else ""


def test_a_table_says_how_it_came_about(results: pathlib.Path) -> None:
    assert figures.read("speed", "small", results).markdown() == TABLE


def test_a_file_may_say_it_for_all_its_tables(results: pathlib.Path) -> None:
    table = RESULTS["tables"]["small"]
    shared = {name: table[name] for name in ("command", "date", "machine")}
    rows = {name: table[name] for name in ("columns", "rows")}
    (results / "speed.json").write_text(json.dumps({**shared, "tables": {"small": rows}}))
    assert figures.read("speed", "small", results).markdown() == TABLE


@pytest.mark.parametrize("name, table", [("slow", "small"), ("speed", "large")])
def test_missing_figures_are_an_error(results: pathlib.Path, name: str, table: str) -> None:
    with pytest.raises(figures.MissingFigures, match=r"slow\.json is missing|no table 'large'"):
        figures.read(name, table, results)


def test_tables_of_equal_columns_are_one(results: pathlib.Path) -> None:
    merged = figures.read("speed", "small small", results)
    assert len(merged.rows) == 4
    # One source is named once.
    assert merged.markdown().count("Abacus 9") == 1
    other = {**RESULTS["tables"]["small"], "columns": ["way", "s", "part"]}
    tables = {**RESULTS["tables"], "other": other}
    (results / "speed.json").write_text(json.dumps({"tables": tables}))
    with pytest.raises(figures.MissingFigures, match="different columns"):
        figures.read("speed", "small other", results)


def test_a_page_includes_a_table(tmp_path: pathlib.Path, results: pathlib.Path) -> None:
    status, messages, page = build(tmp_path, results, "# A\n\n```{figures} speed small\n```\n")
    assert status == 0, messages
    assert "1,234,567" in page and "Abacus 9" in page


def test_a_missing_table_fails_the_build(tmp_path: pathlib.Path, results: pathlib.Path) -> None:
    status, messages, _ = build(tmp_path, results, "# A\n\n```{figures} speed large\n```\n")
    assert status != 0
    assert "no table 'large'" in messages


def test_a_pending_table_is_included_once_it_is_there(results: pathlib.Path) -> None:
    text = "# A\n\n<!-- {figures} speed small -->\n<!-- {figures} speed large -->\n"
    assert figures.include(text, results) == (
        "# A\n\n```{figures} speed small\n```\n<!-- {figures} speed large -->\n"
    )


def test_an_embedded_table_is_made_anew(results: pathlib.Path) -> None:
    text = "a\n<!-- figures speed small -->\nold\n<!-- end of figures -->\nb\n"
    made = f"a\n<!-- figures speed small -->\n{TABLE}<!-- end of figures -->\nb\n"
    assert figures.embed(text, results) == figures.embed(made, results) == made


def test_the_readme_has_the_figures_of_the_benchmarks() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "<!-- figures " in readme
    assert figures.embed(readme) == readme, "run `make figures`"


def test_every_table_that_is_measured_is_in_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert figures.include(text) == text, "run `make figures`"
    shown = {
        (name, table)
        # Or will be, together with a table that has not been measured.
        for name, tables in re.findall(
            r"^(?:```|<!-- )\{figures\} (\S+) (.+?)(?: -->)?$", text, flags=re.MULTILINE
        )
        for table in tables.split()
    }
    assert len(shown) > 20
    measured = {
        (path.stem, table)
        for path in figures.RESULTS.glob("*.json")
        for table in json.loads(path.read_text())["tables"]
    }
    assert measured <= shown
