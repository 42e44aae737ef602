"""The demo's directory, and the commands that a user would type there."""

from __future__ import annotations

import pathlib

import pytest

from pipeline.demonstration import workspace
from pipeline.flags import parser
from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests


def test_overwrite_takes_back_the_results_and_nothing_else(tmp_path):
    others = [
        tmp_path / "notes.txt",
        tmp_path / "checkpoints" / "epoch-1.keras",
        tmp_path / "influence" / "notes.txt",
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    stored = filesystems.write(str(tmp_path / "influence"), "influence-00000.jsonl", b"{}", 1)
    manifests.write(
        str(tmp_path / "influence"),
        manifests.Manifest("influence", "f", {}, (stored,), {"rows": 1}),
    )
    own = [tmp_path / "influence" / name for name in (manifests.FILE_NAME, "influence-00000.jsonl")]
    workspace.prepare_directory(str(tmp_path), overwrite=True)
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in own)


def test_a_demo_that_is_there_is_not_replaced(tmp_path: pathlib.Path) -> None:
    results = workspace.results_of(str(tmp_path))
    manifests.write(results, manifests.Manifest("influence", "f", {}, (), {"rows": 1}))
    with pytest.raises(InputError, match="already holds a demo"):
        workspace.prepare_directory(str(tmp_path), overwrite=False)
    assert filesystems.exists(filesystems.join(results, manifests.FILE_NAME))


def test_the_commands_have_flags_that_there_are(tmp_path: pathlib.Path) -> None:
    directory = str(tmp_path)
    args, left = parser.parse("influence", workspace.influence_flags(directory, ["--runner=x"]))
    assert left == ["--runner=x"] and args.output == workspace.results_of(directory)
    args, _ = parser.parse("score", workspace.score_flags(directory))
    assert args.train_features == workspace.feature_sets_of(directory)["train"]
    assert args.normalize == "cosine"


def test_a_command_is_typed_with_a_flag_on_each_line() -> None:
    assert workspace.typed("score", ["--k=3", "--output=a b"]) == (
        "  tracin score \\\n    --k=3 \\\n    '--output=a b'"
    )
