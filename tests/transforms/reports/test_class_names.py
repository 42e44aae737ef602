"""Names of classes from a text file."""

from __future__ import annotations

import pytest

from transforms.core.errors import InputError
from transforms.reports.class_names import read_class_names
from transforms.storage.manifests import FeatureManifest


def manifest(task: str, outputs: int) -> FeatureManifest:
    return FeatureManifest("features", "", {}, (), {}, "", task, outputs, 5, ("a",), (1.0,), (), {})


@pytest.mark.parametrize(
    ("task", "outputs", "count"), [("class", 3, 3), ("binary", 1, 2), ("multilabel", 1, 1)]
)
def test_each_class_has_a_line(tmp_path, task, outputs, count):
    path = tmp_path / "names.txt"
    names = ["zéro", " one ", "two"][:count]
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    assert read_class_names(str(path), manifest(task, outputs)) == names
    path.write_text("\n".join([*names, "another"]))
    with pytest.raises(InputError, match=f"has {count + 1} lines, .* of {count} classes") as error:
        read_class_names(str(path), manifest(task, outputs))
    assert error.value.field == "class_names"


def test_without_a_path_there_are_no_names():
    assert read_class_names(None, manifest("class", 3)) is None


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("regression", b"a\n", "numbers of a regression"),
        ("class", None, "cannot be read"),
        ("class", b"\xff\n", "cannot be read"),
    ],
)
def test_a_file_without_names_is_refused(tmp_path, task, content, message):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_class_names(str(path), manifest(task, 3))
    assert error.value.field == "class_names" and str(path) in str(error.value)
