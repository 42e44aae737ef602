"""Copies of remote files: made once, by one process at a time, and used only if they are what is
stored.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from tests.conftest import Tiny
from tests.fakes.store import StoreFileSystem, opened
from transforms.core.errors import InputError
from transforms.storage.staging import local_checkpoint

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def remote(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The store's directory, with one checkpoint in it; copies go to `tmp_path / "local"`."""
    for name in ("store", "local"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TRACIN_TEST_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(StoreFileSystem, "faults", [])
    (tmp_path / "store" / "a.keras").write_bytes(b"weights" * 1000)
    return tmp_path / "store"


def test_a_local_path_stays_as_it_is() -> None:
    assert local_checkpoint("some/a.keras") == "some/a.keras"


def test_a_remote_file_is_copied_once(remote: pathlib.Path) -> None:
    path = local_checkpoint("store://a.keras")
    assert pathlib.Path(path).read_bytes() == b"weights" * 1000
    assert local_checkpoint("store://a.keras") == path
    assert opened() == ["store://a.keras"]


def test_all_files_of_a_tensorflow_checkpoint_are_copied(remote: pathlib.Path) -> None:
    names = ["ckpt-1.index", "ckpt-1.data-00000-of-00002", "ckpt-1.data-00001-of-00002"]
    for name in [*names, "ckpt-11.index"]:
        (remote / name).write_text(name)
    path = local_checkpoint("store://ckpt-1")
    assert [pathlib.Path(path).with_name(name).read_text() for name in names] == names
    assert sorted(opened()) == sorted(f"store://{name}" for name in names)


def test_a_changed_file_is_copied_again(remote: pathlib.Path) -> None:
    first = local_checkpoint("store://a.keras")
    (remote / "a.keras").write_bytes(b"WEIGHTS" * 1000)
    os.utime(remote / "a.keras", (1, 1))
    second = local_checkpoint("store://a.keras")
    assert (
        pathlib.Path(first).read_bytes() != pathlib.Path(second).read_bytes() == b"WEIGHTS" * 1000
    )


@pytest.mark.parametrize("damage", ["truncated", "changed", "no digest"])
def test_a_damaged_copy_is_not_used(damage: str) -> None:
    path = pathlib.Path(local_checkpoint("store://a.keras"))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "changed":
        path.write_bytes(b"w3ights" * 1000)
    else:
        path.with_name("a.keras.sha256").unlink()
    assert pathlib.Path(local_checkpoint("store://a.keras")).read_bytes() == b"weights" * 1000
    assert len(opened()) == 2


@pytest.mark.parametrize("fault", ["short", "changed", "broken"])
def test_a_file_that_does_not_arrive_whole_is_copied_again(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    StoreFileSystem.faults.extend([fault] * 2)
    path = pathlib.Path(local_checkpoint("store://a.keras"))
    assert path.read_bytes() == b"weights" * 1000
    assert len(opened()) == 3
    assert (
        sum("store://a.keras did not arrive" in record.getMessage() for record in caplog.records)
        == 2
    )
    assert {file.name for file in path.parent.iterdir()} == {"a.keras", "a.keras.sha256", "lock"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [("short", "7000 bytes, 3500 arrived"), ("changed", "CRC-32C"), ("broken", "reset by peer")],
)
def test_a_file_that_never_arrives_whole_is_reported_and_leaves_nothing(
    tmp_path: pathlib.Path, fault: str, message: str
) -> None:
    StoreFileSystem.faults.extend([fault] * 3)
    with pytest.raises(
        InputError, match=f"^store://a.keras cannot be copied to this machine: .*{message}"
    ):
        local_checkpoint("store://a.keras")
    assert {file.name for file in (tmp_path / "local").rglob("*") if file.is_file()} == {"lock"}


def test_a_store_without_checksums_is_believed_for_its_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StoreFileSystem, "tells_crc32c", False)
    StoreFileSystem.faults.append("short")
    assert len(pathlib.Path(local_checkpoint("store://a.keras")).read_bytes()) == 7000


def test_a_missing_file_is_reported() -> None:
    with pytest.raises(InputError, match=r"^store://b.keras: no such file$"):
        local_checkpoint("store://b.keras")


def test_processes_wait_for_each_others_copies() -> None:
    code = """
from tests.fakes import store
from transforms.storage.staging import local_checkpoint
store.StoreFileSystem.seconds = 1.0
print(local_checkpoint("store://a.keras"))
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    (path,) = paths
    assert pathlib.Path(path).read_bytes() == b"weights" * 1000
    assert opened() == ["store://a.keras"]


def test_a_run_reads_its_checkpoints_from_a_store(tiny: Tiny, remote: pathlib.Path) -> None:
    from transforms.extraction.worker.model import Model
    from transforms.models import checkpoint_files
    from transforms.models.checkpoints import ModelSpec

    for path in tiny.paths:
        (remote / path.name).write_bytes(path.read_bytes())
    spec = ModelSpec(tuple(f"store://{path.name}" for path in tiny.paths))
    model = Model(spec, tuple(checkpoint_files.digest(str(path)) for path in tiny.paths))
    StoreFileSystem.faults.append("changed")
    assert model.acquire().size == len(tiny.paths)
    assert len(opened()) == len(tiny.paths) + 1
