"""The files that globs match, and their names."""

from __future__ import annotations

import pathlib

import pytest

from transforms.core.errors import InputError
from transforms.storage import globs


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("a.tf", "b.tf", "x/a.tf", "x/c.tf", "y/a.tf", "other.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data/*.tf", ["a.tf", "b.tf"]),
        ("data/a.tf", ["a.tf"]),
        ("data/?.tf", ["a.tf", "b.tf"]),
        ("data/[ab].tf", ["a.tf", "b.tf"]),
        ("data/*/a.tf", ["x/a.tf", "y/a.tf"]),
        ("data/x/*", ["a.tf", "c.tf"]),
        ("data/a*,data/b*", ["a.tf", "b.tf"]),
        (" data/a* , data/b* ,", ["a.tf", "b.tf"]),
        ("data/*.tf,data/a.tf", ["a.tf", "b.tf"]),
        ("*/x/*.tf", ["data/x/a.tf", "data/x/c.tf"]),
        ("da*/a.tf", ["data/a.tf"]),
        ("./data/*.tf", ["a.tf", "b.tf"]),
        ("data/x/../*.tf", ["a.tf", "b.tf"]),
    ],
)
@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_names_are_what_follows_the_globs_literal_directory(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str], kind: str
) -> None:
    monkeypatch.chdir(tree)
    if kind == "absolute":
        pattern = ",".join(f"{tree}/{part.strip()}" for part in pattern.split(",") if part.strip())
    files = globs.find(pattern, "examples")
    assert [file.name for file in files] == names
    assert all(
        file.size == len(pathlib.Path(file.path).read_bytes()) and file.modified > 0
        for file in files
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.tf", ["a.tf", "b.tf"]),
        ("a*", ["a.tf"]),
        ("b.tf", ["b.tf"]),
        ("*/*", ["x/a.tf", "x/c.tf", "y/a.tf"]),
    ],
)
def test_a_glob_in_the_working_directory_needs_no_slash(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str]
) -> None:
    monkeypatch.chdir(tree / "data")
    assert [file.name for file in globs.find(pattern, "examples")] == names


def test_nested_directories_are_reached_by_two_stars(tree: pathlib.Path) -> None:
    assert [
        file.name for file in globs.find(f"{tree}/data/**/*.tf", "examples") if "/" in file.name
    ] == [
        "x/a.tf",
        "x/c.tf",
        "y/a.tf",
    ]


@pytest.mark.parametrize("empty", ["", " ", ",,"])
def test_no_glob_at_all_is_refused(empty: str) -> None:
    with pytest.raises(InputError, match="`examples` is empty"):
        globs.find(empty, "examples")


@pytest.mark.parametrize("pattern", ["data/*.nothing", "nowhere/*", "nowhere/a.tf", "data/x"])
def test_each_glob_must_match_a_file(tree: pathlib.Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"`train_examples=.*` matches no file"):
        globs.find(f"{tree}/data/a.tf,{tree}/{pattern}", "train_examples")


def test_files_that_would_share_ids_are_refused_by_name(tree: pathlib.Path) -> None:
    with pytest.raises(InputError) as caught:
        globs.find(f"{tree}/data/x/*,{tree}/data/y/*", "examples")
    message = str(caught.value)
    assert (
        f"{tree}/data/x/a.tf" in message
        and f"{tree}/data/y/a.tf" in message
        and "a.tf#0" in message
    )
    # One glob above both tells them apart.
    assert len(globs.find(f"{tree}/data/*/a.tf", "examples")) == 2


@pytest.mark.parametrize(
    ("pattern", "directory"),
    [
        ("gs://b/2024/*/train-*", "gs://b/2024/"),
        ("gs://b/*", "gs://b/"),
        ("data/a.tf", "data/"),
        ("data/a[0-9].tf", "data/"),
        ("*.tf", ""),
        ("/*", "/"),
    ],
)
def test_the_literal_directory_ends_before_the_first_wildcard(pattern: str, directory: str) -> None:
    assert globs.literal_directory(pattern) == directory


def test_names_are_of_files_that_match_any_glob(tree: pathlib.Path) -> None:
    assert globs.names_matching(f"{tree}/data", ["a*", "*.txt"]) == {"a.tf", "other.txt"}


@pytest.mark.parametrize(
    ("path", "expected"), [("a.tf", False), ("a*.tf", True), ("a[1].tf", True), ("gs://b/?", True)]
)
def test_a_glob_has_a_special_character(path: str, expected: bool) -> None:
    assert globs.is_glob(path) == expected
