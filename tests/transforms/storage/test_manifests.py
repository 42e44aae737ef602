"""The manifest of a directory: written, read, committed and withdrawn."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import pytest

from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import FILE_NAME, FeatureManifest, Manifest

SETTINGS: dict[str, Any] = {
    "k": 10,
    "loss": "mse",
    "checkpoints": [{"name": "a.keras", "sha256": "00"}],
    "keys": ["a", "b"],
}


def feature_manifest(**changes: Any) -> FeatureManifest:
    written = FeatureManifest(
        kind="features",
        fingerprint=manifests.fingerprint(SETTINGS),
        settings=SETTINGS,
        files=(
            StoredFile("features-1.tfrecord", 10, 123, 4),
            StoredFile("features-0.tfrecord", 20, 456, 3),
        ),
        counts={"examples": 7, "rejected": 1},
        model_fingerprint="m",
        task="class",
        outputs=3,
        units=7,
        checkpoints=("a.keras", "b.keras"),
        learning_rates=(0.1, None),
        rejected_files=(StoredFile("rejected-0.jsonl", 5, 7, 1),),
        rejected={"bad-label": 1},
    )
    return dataclasses.replace(written, **changes)


def influence_manifest() -> Manifest:
    return Manifest(
        "influence", "f", {}, (StoredFile("influence-00000.jsonl", 3, 4, 5),), {"rows": 5}
    )


def test_a_manifest_survives_a_round_trip(tmp_path: pathlib.Path) -> None:
    directory = str(tmp_path / "new" / "set")
    manifests.write(directory, feature_manifest())
    manifest = manifests.read(directory, FeatureManifest, "features")
    assert manifest == feature_manifest()
    assert manifest.examples == 7 and manifest.integer_labels
    assert not feature_manifest(task="regression").integer_labels
    manifests.write(directory, influence_manifest())
    assert manifests.read(directory, Manifest, "output") == influence_manifest()


def test_a_directory_without_manifest_holds_no_set(tmp_path: pathlib.Path) -> None:
    (tmp_path / "features-0.tfrecord").write_bytes(b"left over")
    assert manifests.read_if_any(str(tmp_path), "output") is None
    with pytest.raises(
        InputError,
        match=f"`train_features='{tmp_path}'` is not a complete set: it has no manifest.json",
    ):
        manifests.read(str(tmp_path), FeatureManifest, "train_features")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"format": 1}',
        b'{"format": 99, "kind": "influence"}',
        b'{"format": 1, "kind": "influence", '
        b'"fingerprint": '
        b'"f", '
        b'"settings": '
        b"{}, "
        b'"files": '
        b'[{"name": "a"}], "counts": {}}',
        b'{"format": 1, "kind": "features", "fingerprint": '
        b'"f", '
        b'"settings": '
        b"{}, "
        b'"files": '
        b"[], "
        b'"counts": {}}',
    ],
)
def test_a_damaged_manifest_is_reported_with_its_path_and_a_remedy(
    tmp_path: pathlib.Path, content: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(InputError) as caught:
        manifests.read(str(tmp_path), FeatureManifest, "train_features")
    message = str(caught.value)
    assert (
        "`train_features`" in message
        and str(tmp_path / FILE_NAME) in message
        and "remove the file" in message
    )
    assert "\n" not in message


def test_every_cut_of_a_manifest_is_noticed(tmp_path: pathlib.Path) -> None:
    manifests.write(str(tmp_path), feature_manifest())
    data = (tmp_path / FILE_NAME).read_bytes()
    for cut in range(0, len(data.rstrip()), 50):
        (tmp_path / FILE_NAME).write_bytes(data[:cut])
        with pytest.raises(InputError):
            manifests.read_if_any(str(tmp_path), "output")


def test_a_set_of_another_kind_is_refused(tmp_path: pathlib.Path) -> None:
    manifests.write(str(tmp_path), influence_manifest())
    with pytest.raises(InputError, match="holds influence, expected features"):
        manifests.read(str(tmp_path), FeatureManifest, "train_features")
    manifests.write(str(tmp_path), feature_manifest())
    with pytest.raises(InputError, match="holds features, expected a result"):
        manifests.read(str(tmp_path), Manifest, "output")


def test_a_fingerprint_depends_on_content_and_not_on_the_order_of_keys() -> None:
    assert manifests.fingerprint(SETTINGS) == manifests.fingerprint(
        dict(reversed(SETTINGS.items()))
    )
    assert manifests.fingerprint(SETTINGS) == manifests.fingerprint(
        json.loads(json.dumps(SETTINGS))
    )
    for key in SETTINGS:
        assert manifests.fingerprint({**SETTINGS, key: None}) != manifests.fingerprint(SETTINGS)


def is_complete(
    directory: pathlib.Path,
    settings: dict[str, Any],
    kind: str = "features",
    overwrite: bool = False,
) -> bool:
    draft = Manifest(kind, manifests.fingerprint(settings), settings, (), {})
    return manifests.is_complete(str(directory), draft, overwrite)


def committed(directory: pathlib.Path) -> FeatureManifest:
    """A committed set whose files are there, and its manifest."""
    manifest = feature_manifest()
    stored = tuple(
        filesystems.write(str(directory), file.name, b"x" * file.size, file.count)
        for file in (*manifest.files, *manifest.rejected_files)
    )
    n = len(manifest.files)
    manifest = dataclasses.replace(manifest, files=stored[:n], rejected_files=stored[n:])
    manifests.write(str(directory), manifest)
    return manifest


def test_a_complete_set_with_the_same_fingerprint_is_recognised(tmp_path: pathlib.Path) -> None:
    assert not is_complete(tmp_path, SETTINGS)
    committed(tmp_path)
    assert is_complete(tmp_path, SETTINGS)
    assert not is_complete(tmp_path, SETTINGS, overwrite=True)


def test_a_set_whose_files_are_gone_or_cut_is_not_complete(tmp_path: pathlib.Path) -> None:
    file = committed(tmp_path).files[0]
    (tmp_path / file.name).write_bytes(b"")
    with pytest.raises(
        InputError, match=f"{file.name} has 0 bytes instead of {file.size}, .* pass `overwrite`"
    ):
        is_complete(tmp_path, SETTINGS)
    (tmp_path / file.name).unlink()
    with pytest.raises(
        InputError, match=f"{file.name} is missing, though its manifest says it is complete"
    ):
        is_complete(tmp_path, SETTINGS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_set_of_another_kind_is_never_overwritten(
    tmp_path: pathlib.Path, overwrite: bool
) -> None:
    committed(tmp_path)
    with pytest.raises(
        InputError, match="holds features, and influence would go there: choose another directory"
    ):
        is_complete(tmp_path, SETTINGS, "influence", overwrite)


def test_a_complete_set_with_other_settings_names_what_differs(tmp_path: pathlib.Path) -> None:
    committed(tmp_path)
    with pytest.raises(InputError) as caught:
        is_complete(tmp_path, {**SETTINGS, "k": 20, "extra": True})
    message = str(caught.value)
    assert (
        "k was 10, is 20" in message
        and "extra was null, is true" in message
        and "`overwrite`" in message
    )
    assert "loss" not in message


def test_a_difference_inside_a_list_is_named_by_its_smallest_part() -> None:
    was = {"examples": [{"name": "a", "size": 1}, {"name": "b", "size": 2}]}
    assert manifests.differences(
        was, {"examples": [{"name": "a", "size": 1}, {"name": "b", "size": 3}]}
    ) == ["b size was 2, is 3"]
    assert manifests.differences(was, {"examples": []}) == ["examples were 2, are 0"]


def test_many_differences_are_counted_and_long_ones_cut(tmp_path: pathlib.Path) -> None:
    manifests.write(str(tmp_path), feature_manifest())
    settings = {"k": "x" * 500, "a": 1, "b": 2}
    with pytest.raises(InputError) as caught:
        is_complete(tmp_path, settings)
    assert "and 3 more" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_manifest_is_withdrawn_before_its_files_and_other_files_stay(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = committed(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"x")
    deleted: list[str] = []
    delete = filesystems.FileSystems.delete

    def watched(paths: list[str]) -> None:
        deleted.extend(os.path.basename(path) for path in paths)
        delete(paths)

    monkeypatch.setattr(filesystems.FileSystems, "delete", staticmethod(watched))
    manifests.withdraw(str(tmp_path))
    assert deleted == [
        FILE_NAME,
        *sorted(file.name for file in (*manifest.files, *manifest.rejected_files)),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_withdrawing_nothing_changes_nothing(tmp_path: pathlib.Path) -> None:
    manifests.withdraw(str(tmp_path / "never written"))
    assert not (tmp_path / "never written").exists()


def test_a_commit_clears_the_remains_of_attempts_and_leaves_other_files(
    tmp_path: pathlib.Path,
) -> None:
    manifest = feature_manifest()
    for name in (
        "features-9-dead.tfrecord",
        "rejected-9-dead.jsonl",
        "notes.txt",
        *(file.name for file in manifest.files),
    ):
        (tmp_path / name).write_bytes(b"x")
    assert manifests.commit(str(tmp_path), manifest, overwrite=False) == manifest
    assert {path.name for path in tmp_path.iterdir()} == {
        FILE_NAME,
        "notes.txt",
        *(file.name for file in manifest.files),
    }


def test_of_two_runs_into_one_directory_the_second_does_not_destroy_the_first(
    tmp_path: pathlib.Path,
) -> None:
    first = committed(tmp_path)
    mine = filesystems.write(str(tmp_path), "features-mine.tfrecord", b"x", 1)
    # The same content, from another attempt: what is committed stands.
    assert (
        manifests.commit(str(tmp_path), dataclasses.replace(first, files=(mine,)), overwrite=False)
        == first
    )
    assert not (tmp_path / "features-mine.tfrecord").exists()
    with pytest.raises(InputError, match="was committed by another run with other settings"):
        manifests.commit(
            str(tmp_path), dataclasses.replace(first, fingerprint="other"), overwrite=False
        )
    assert manifests.read(str(tmp_path), FeatureManifest, "output") == first


def test_overwriting_replaces_a_commit_in_one_step(tmp_path: pathlib.Path) -> None:
    first = committed(tmp_path)
    mine = filesystems.write(str(tmp_path), "features-mine.tfrecord", b"x", 1)
    second = dataclasses.replace(first, files=(mine,), rejected_files=())
    assert manifests.commit(str(tmp_path), second, overwrite=True) == second
    assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME, "features-mine.tfrecord"}
