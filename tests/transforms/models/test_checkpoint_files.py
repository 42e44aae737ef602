"""Files of checkpoints: which ones belong together, their order by name, digests, damage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from tests.small import save
from transforms.core.errors import InputError
from transforms.models.checkpoint_files import (
    digest,
    files_of,
    group_paths,
    natural_key,
    read_config,
)


def test_group_paths() -> None:
    paths = [
        "gs://b/checkpoint",
        "gs://b/ckpt-2.data-00000-of-00002",
        "gs://b/ckpt-2.data-00001-of-00002",
        "gs://b/ckpt-2.index",
        "a/m.keras",
        "a/m.weights.h5",
    ]
    assert group_paths(paths) == ["gs://b/ckpt-2", "a/m.keras", "a/m.weights.h5"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["a/m.h5"],
            r"a/m.h5 is not a checkpoint; expected a .keras file, "
            r"a "
            r".weights.h5 "
            r"file, "
            r"or "
            r"the "
            r".index",
        ),
        (["a/c-1.index"], r"a/c-1 lacks a/c-1.data-\*"),
        (["a/c-1.data-00000-of-00001"], "a/c-1 lacks a/c-1.index"),
    ],
)
def test_group_paths_refuses(paths: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_paths(paths)


def test_natural_key() -> None:
    assert sorted(["epoch-10", "epoch-2", "epoch-2b"], key=natural_key) == [
        "epoch-2",
        "epoch-2b",
        "epoch-10",
    ]


def test_digest_is_that_of_all_files(trained: keras.Model, tmp_path: Path) -> None:
    archive = save(trained, tmp_path / "m.keras")
    assert files_of(archive) == [archive]
    assert digest(archive) == hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    prefix = str(tmp_path / "ckpt")
    tf.train.Checkpoint(model=trained).write(prefix)
    files = [f"{prefix}.index", f"{prefix}.data-00000-of-00001"]
    assert files_of(prefix) == files
    content = b"".join(Path(file).read_bytes() for file in files)
    assert digest(prefix) == hashlib.sha256(content).hexdigest()


def test_read_config(trained: keras.Model, tmp_path: Path) -> None:
    path = Path(save(trained, tmp_path / "m.keras"))
    assert read_config(str(path))["class_name"] == "Sequential"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"m.keras cannot be read .* cut off or damaged"):
        read_config(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.index").write_bytes(b"")
    for name in ("gone.keras", "gone.weights.h5", "gone", "half"):
        with pytest.raises(InputError, match=f"{name}.* exist"):
            files_of(str(tmp_path / name))
