"""Files: written whole, read verified, described where a store refuses."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
from apache_beam.io.filesystem import BeamIOError
from google.api_core.exceptions import Forbidden

from transforms.core.errors import InputError
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile


def test_a_written_file_is_what_the_manifest_says(tmp_path: pathlib.Path) -> None:
    stored = filesystems.write(str(tmp_path / "deep" / "er"), "a", b"123456789", 4)
    assert stored == StoredFile("a", 9, 0xE3069283, 4)  # the check value of CRC-32C
    assert filesystems.read_verified(str(tmp_path / "deep" / "er"), stored) == b"123456789"
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a"]


def test_a_file_in_the_making_has_its_name_only_when_it_is_whole(tmp_path: pathlib.Path) -> None:
    new = filesystems.NewFile(str(tmp_path / "deep"), "a")
    for part in (b"1234", b"", b"56789"):
        new.add(part)
        assert not (tmp_path / "deep" / "a").exists()
    assert new.size == 9 and new.finish(4) == StoredFile("a", 9, 0xE3069283, 4)
    new.discard()  # too late
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]
    given_up = filesystems.NewFile(str(tmp_path / "deep"), "b")
    given_up.add(b"1")
    given_up.discard()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


@pytest.mark.parametrize("failing", ["write", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    filesystems.write(str(tmp_path), "a", b"old", 0)
    if failing == "rename":

        def full(*_: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(InputError, match=r"a cannot be written: no space left$"):
            filesystems.write(str(tmp_path), "a", b"new", 0)
    else:
        with pytest.raises(TypeError):
            filesystems.write(str(tmp_path), "a", "not bytes", 0)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "missing"])
def test_a_damaged_file_is_noticed_before_it_is_used(tmp_path: pathlib.Path, damage: str) -> None:
    data = bytes(range(256))
    stored = filesystems.write(str(tmp_path), "a", data, 1)
    path = tmp_path / "a"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "flipped": data[:100] + b"\x65" + data[101:],
                "cut": data[:-1],
                "longer": data + b"\0",
            }[damage]
        )
    with pytest.raises(InputError) as caught:
        filesystems.read_verified(str(tmp_path), stored)
    assert str(path) in str(caught.value)
    assert ("cannot be read" if damage == "missing" else "is damaged") in str(caught.value)


def test_a_directory_that_cannot_be_written_is_reported_before_any_work(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"`output=.*` cannot be written"):
        filesystems.check_writable(str(tmp_path / "file" / "below"))
    filesystems.check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_checksum_goes_on_where_another_ends() -> None:
    assert filesystems.crc32c(b"123456789") == 0xE3069283
    assert filesystems.crc32c(b"6789", filesystems.crc32c(b"12345")) == 0xE3069283


def test_deleting_skips_files_that_are_gone(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        filesystems.write(str(tmp_path), name, b"x", 1)
    filesystems.delete(str(tmp_path), ["a", "never written"])
    assert not filesystems.exists(f"{tmp_path}/a") and filesystems.exists(f"{tmp_path}/b")


def test_sizes_are_of_the_files_that_exist(tmp_path: pathlib.Path) -> None:
    filesystems.write(str(tmp_path), "a", b"123", 1)
    assert filesystems.sizes(str(tmp_path), ["a", "b"]) == {"a": 3}


def test_an_error_is_described_in_one_line_by_its_first_cause() -> None:
    assert filesystems.describe_error(OSError("no space left\nat all")) == "no space left"
    cause = OSError("no such bucket")
    assert filesystems.describe_error(BeamIOError("many", {"gs://b/a": cause})) == "no such bucket"
    assert "denied" in filesystems.describe_error(Forbidden("denied"))


def test_paths_are_joined_by_one_slash() -> None:
    assert filesystems.join("gs://b/out/", "a") == filesystems.join("gs://b/out", "a")
    assert filesystems.is_local("/data/a") and not filesystems.is_local("gs://b/a")
