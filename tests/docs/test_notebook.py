"""The notebook runs, and shows data frames and pictures."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import nbclient
import pytest
from myst_nb.core.read import read_myst_markdown_notebook

NOTEBOOK = pathlib.Path(__file__).parents[2] / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Executes the notebook in an empty directory; returns its cells of code."""
    notebook = read_myst_markdown_notebook(NOTEBOOK.read_text())
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}},
    ).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_shows_data_frames_and_pictures(cells: list[Any]) -> None:
    kinds = [kind for cell in cells for output in cell.outputs for kind in output.get("data", ())]
    assert kinds.count("text/html") == 5
    assert kinds.count("image/png") == 2


def test_the_audit_finds_most_of_the_wrong_labels(cells: list[Any]) -> None:
    text = "".join(
        output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout"
    )
    (found, planted) = re.search(r"(\d+) of (\d+) wrong labels", text).groups()
    assert int(found) > 0.8 * int(planted)
