"""Stage 1 of a command: its stages, what is announced and what is summarised."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.preparation import extraction
from pipeline.running.outcomes import RunFailed
from transforms.storage import manifests
from transforms.storage.manifests import FeatureManifest


def extract(complete: bool, size: int, base: object = None, output: str = "") -> Any:
    return SimpleNamespace(
        complete=complete, bytes_to_read=size, stage=SimpleNamespace(base=base), output=output
    )


def test_only_what_is_missing_has_a_stage() -> None:
    assert extraction.stages([]) == []
    assert extraction.stages([extract(True, 10)]) == []
    (read,) = extraction.stages([extract(True, 10), extract(False, 20), extract(False, 30)])
    assert (read.title, read.total) == ("Extract features", 50)


def test_a_base_is_compared_first() -> None:
    compare, read = extraction.stages([extract(False, 20, base="b"), extract(False, 30)])
    assert (compare.title, compare.total) == ("Compare examples", 20)
    assert read.total == 50


def write(directory: pathlib.Path, examples: int, rejected: int) -> str:
    manifest = FeatureManifest(
        "features",
        "f",
        {},
        (),
        {"examples": examples, "rejected": rejected},
        "m",
        "class",
        3,
        4,
        ("c",),
        (0.1,),
        (),
        {},
    )
    manifests.write(str(directory), manifest)
    return str(directory)


def test_what_was_read_is_summed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write(tmp_path / "a", 10, 2), write(tmp_path / "b", 5, 0)
    sets = {
        "train_features": extract(False, 1, output=train),
        "test_features": extract(True, 1, output=test),
    }
    found, read = extraction.summarise(sets)
    assert [manifest.counts["examples"] for manifest in found] == [10, 5]
    assert read == 12
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(sets)


def test_a_set_that_is_not_there_is_a_failed_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunFailed):
        extraction.summarise({"features": extract(False, 1, output=str(tmp_path))})
