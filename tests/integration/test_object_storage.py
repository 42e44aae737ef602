"""Cloud Storage, as an emulator has it: checkpoints copied, whole commands that read and write it,
and what is survived.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping

import pytest
import tensorflow as tf

from tests.conftest import Tiny, write_records
from tests.fakes import google_cloud
from tests.fakes.object_store import BUCKET, Fault, Store
from transforms.core.errors import InputError
from transforms.storage import filesystems, globs, manifests
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import tfrecords
from transforms.storage.staging import StagingTuning, local_checkpoint

CONTENT = bytes(range(256)) * 4000
A = f"gs://{BUCKET}/ckpt/a.keras"
# A checkpoint of a mebibyte is copied by four requests.
FOUR_PARTS = StagingTuning(part_bytes=1 << 18)
DOWNLOAD = r"^GET /download/.*alt=media"


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with google_cloud.running_store() as store:
        yield store


@pytest.fixture
def store(server: Store, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, nothing broken; copies of checkpoints go to `tmp_path / "local"`."""
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    server.faults.clear()
    server.requests.clear()
    server.broken.clear()
    return server


# Staging


@pytest.fixture
def checkpoint(store: Store) -> Store:
    """The store with a checkpoint of four parts."""
    store.put("ckpt/a.keras", CONTENT)
    return store


def test_a_checkpoint_is_copied_once_and_in_parts(checkpoint: Store) -> None:
    path = pathlib.Path(local_checkpoint(A, FOUR_PARTS))
    assert path.read_bytes() == CONTENT
    assert local_checkpoint(A, FOUR_PARTS) == str(path)
    assert len(checkpoint.asked(DOWNLOAD)) == 4
    described = checkpoint.described("ckpt/a.keras")
    assert described and all(
        f"generation={described['generation']}" in request for request in checkpoint.asked(DOWNLOAD)
    )
    assert {file.name for file in path.parent.iterdir()} == {"a.keras", "a.keras.sha256", "lock"}


def test_all_objects_of_a_tensorflow_checkpoint_are_copied(store: Store) -> None:
    names = ["ckpt-1.index", "ckpt-1.data-00000-of-00002", "ckpt-1.data-00001-of-00002"]
    for name in [*names, "ckpt-11.index"]:
        store.put(f"tf/{name}", name.encode())
    path = local_checkpoint(f"gs://{BUCKET}/tf/ckpt-1", FOUR_PARTS)
    assert [pathlib.Path(path).with_name(name).read_text() for name in names] == names
    assert len(store.asked(DOWNLOAD)) == 3


def test_a_new_generation_is_copied_anew(checkpoint: Store) -> None:
    first = local_checkpoint(A, FOUR_PARTS)
    # Of the same size; its time of change would do as well, were clocks to be trusted.
    checkpoint.put("ckpt/a.keras", CONTENT[::-1])
    second = local_checkpoint(A, FOUR_PARTS)
    assert pathlib.Path(second).read_bytes() == CONTENT[::-1]
    assert pathlib.Path(first).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["truncated", "changed", "no digest"])
def test_a_damaged_copy_is_copied_again(checkpoint: Store, damage: str) -> None:
    path = pathlib.Path(local_checkpoint(A, FOUR_PARTS))
    if damage == "truncated":
        os.truncate(path, 1000)
    elif damage == "changed":
        path.write_bytes(b"?" + CONTENT[1:])
    else:
        path.with_name("a.keras.sha256").unlink()
    assert pathlib.Path(local_checkpoint(A, FOUR_PARTS)).read_bytes() == CONTENT
    assert len(checkpoint.asked(DOWNLOAD)) == 8


@pytest.mark.parametrize("what", [429, 503, "broken", "lost", "short", "changed"])
def test_a_download_that_goes_wrong_is_mended(
    checkpoint: Store, what: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.faults.append(Fault(what, DOWNLOAD))
    path = pathlib.Path(local_checkpoint(A, FOUR_PARTS))
    assert path.read_bytes() == CONTENT
    assert [fault for fault, _ in checkpoint.broken] == [what]
    # The library asks again for what does not come; what comes and is wrong it cannot know.
    again = [record for record in caplog.records if "did not arrive" in record.getMessage()]
    assert len(again) == (what in ("short", "changed"))
    assert {file.name for file in path.parent.iterdir()} == {"a.keras", "a.keras.sha256", "lock"}


@pytest.mark.parametrize(
    ("what", "message"), [("short", "CRC-32C|arrived"), ("changed", "CRC-32C"), (403, "403")]
)
def test_a_file_that_never_arrives_whole_is_reported_and_leaves_nothing(
    checkpoint: Store, tmp_path: pathlib.Path, what: int | str, message: str
) -> None:
    checkpoint.faults.append(Fault(what, DOWNLOAD, times=12))
    with pytest.raises(InputError, match=rf"^{A} cannot be copied to this machine: .*({message})"):
        local_checkpoint(A, FOUR_PARTS)
    assert {file.name for file in (tmp_path / "local").rglob("*") if file.is_file()} == {"lock"}


def test_a_missing_or_forbidden_file_is_reported(checkpoint: Store) -> None:
    with pytest.raises(InputError, match=rf"^gs://{BUCKET}/ckpt/b.keras: no such file$"):
        local_checkpoint(f"gs://{BUCKET}/ckpt/b.keras", FOUR_PARTS)
    with pytest.raises(InputError, match=r"^gs://no-bucket/a.keras: no such file$"):
        local_checkpoint("gs://no-bucket/a.keras", FOUR_PARTS)
    # When it is looked for, described, and read.
    for on in (
        "^GET .*/o/ckpt/a.keras.*fields=name",
        "^GET .*/o/ckpt/a.keras.*projection",
        DOWNLOAD,
    ):
        checkpoint.faults[:] = [Fault(403, on, times=100)]
        with pytest.raises(
            InputError,
            match=rf"^{A} cannot be copied to this machine: 403 Forbidden: no permission$",
        ):
            local_checkpoint(A, FOUR_PARTS)


# Files

OUT = f"gs://{BUCKET}/files"


def test_files_are_written_found_read_and_deleted(store: Store) -> None:
    filesystems.check_writable(OUT)
    assert store.objects("files/") == {}
    written = filesystems.write(OUT, "a[1].bin", CONTENT, 3)
    filesystems.write(OUT, "b.bin", b"", 0)
    assert store.objects("files/") == {"a[1].bin": CONTENT, "b.bin": b""}
    assert filesystems.read_verified(OUT, written) == CONTENT
    assert filesystems.read(f"{OUT}/b.bin") == b""
    assert filesystems.exists(f"{OUT}/b.bin") and not filesystems.exists(f"{OUT}/c.bin")
    assert globs.names_matching(OUT, ["a*", "*.txt"]) == {"a[1].bin"}
    assert [(file.name, file.size) for file in globs.find(f"{OUT}/*.bin", "examples")] == [
        ("a[1].bin", len(CONTENT)),
        ("b.bin", 0),
    ]
    assert filesystems.sizes(OUT, ["b.bin", "c.bin"]) == {"b.bin": 0}
    filesystems.delete(OUT, ["b.bin", "c.bin"])
    assert set(store.objects("files/")) == {"a[1].bin"}


def test_a_stream_seeks_and_ends_where_the_object_does(store: Store) -> None:
    store.put("files/seek.bin", CONTENT)
    store.faults.append(Fault("short", DOWNLOAD, times=3))
    with filesystems.open_raw(f"{OUT}/seek.bin") as stream:
        assert stream.read(4) == CONTENT[:4]
        assert stream.seek(0) == 0
        assert stream.read(len(CONTENT) - 10) == CONTENT[:-10]
        assert stream.tell() == len(CONTENT) - 10
        assert stream.seek(-300, os.SEEK_END) == len(CONTENT) - 300
        assert stream.read(1000) == CONTENT[-300:]
        assert stream.read(1) == b""
    assert len(store.broken) == 3


@pytest.mark.parametrize("what", [429, 503, "broken", "lost", "short", "changed"])
def test_reading_that_goes_wrong_is_mended(store: Store, what: int | str) -> None:
    written = filesystems.write(OUT, "read.bin", CONTENT, 1)
    store.faults += [
        Fault(what, DOWNLOAD),
        Fault(503, "^GET .*projection"),
        Fault(429, "^GET .*prefix"),
    ]
    assert filesystems.read_verified(OUT, written) == CONTENT
    assert globs.names_matching(OUT, ["read*"]) == {"read.bin"}
    assert {fault for fault, _ in store.broken} == {what, 503, 429}


@pytest.mark.parametrize("on", ["^POST /upload", "^PUT /upload"])
@pytest.mark.parametrize("what", [429, 503, "broken", "lost"])
def test_writing_that_goes_wrong_is_mended(store: Store, what: int | str, on: str) -> None:
    store.put("files/write.bin", b"before")
    store.faults.append(Fault(what, on))
    filesystems.write(OUT, "write.bin", CONTENT, 1)
    assert [fault for fault, _ in store.broken] == [what]
    assert store.objects("files/")["write.bin"] == CONTENT


def test_deleting_that_goes_wrong_is_mended(store: Store) -> None:
    for what in (429, 503, "broken", "lost"):
        store.put("files/delete.bin", b"x")
        store.faults[:] = [Fault(what, "^POST /batch")]
        filesystems.delete(OUT, ["delete.bin"])
        assert store.described("files/delete.bin") is None
    assert len(store.broken) == 4


@pytest.mark.parametrize("on", ["^POST /upload", "^PUT /upload"])
def test_a_refused_file_is_reported_and_not_written_later(store: Store, on: str) -> None:
    store.faults.append(Fault(403, on, times=3))
    with pytest.raises(
        InputError, match=rf"^{OUT}/late.bin cannot be written: 403 Forbidden: no permission$"
    ):
        filesystems.write(OUT, "late.bin", CONTENT, 1)
    # An upload that is left open would be tried once more here.
    gc.collect()
    assert len(store.broken) == 3
    assert store.described("files/late.bin") is None


def test_a_damaged_or_missing_file_is_reported(store: Store) -> None:
    written = filesystems.write(OUT, "damaged.bin", CONTENT, 1)
    store.put("files/damaged.bin", CONTENT[::-1])
    with pytest.raises(
        InputError, match=f"^{OUT}/damaged.bin is damaged: its manifest says {len(CONTENT)} bytes"
    ):
        filesystems.read_verified(OUT, written)
    filesystems.delete(OUT, ["damaged.bin"])
    with pytest.raises(
        InputError, match=f"^{OUT}/damaged.bin is listed in its manifest and cannot be read: 404 "
    ):
        filesystems.read_verified(OUT, written)


# Whole commands


@dataclasses.dataclass(frozen=True)
class Local:
    """What the commands leave on the disk, and what they were given there."""

    directory: pathlib.Path
    checkpoints: str


@pytest.fixture(scope="module")
def local(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Local:
    """`tracin influence` on the disk, of 30 training examples in three files and 10 test
    examples.
    """
    from pipeline import cli

    directory = tmp_path_factory.mktemp("disk")
    payloads = tiny.payloads()
    for i in range(3):
        write_records(
            directory / "examples" / f"train-{i}",
            payloads[10 * i : 10 * i + 10],
            "GZIP" if i == 1 else "",
        )
    write_records(directory / "examples" / "test-0", payloads[30:])
    assert cli.main(influence(str(directory / "examples"), tiny.glob, str(directory / "out"))) == 0
    return Local(directory, tiny.glob)


def influence(examples: str, checkpoints: str, output: str) -> list[str]:
    words = [f"--{name}_examples={examples}/{name}-*" for name in ("train", "test")]
    return [
        "influence",
        *words,
        f"--checkpoints={checkpoints}",
        "--id_key=id",
        "--k=4",
        f"--output={output}",
    ]


@pytest.fixture
def cloud(store: Store, tiny: Tiny, local: Local) -> str:
    """The same examples and checkpoints in the store, nothing written yet: its directory."""
    for path in tiny.paths:
        store.put(f"job/checkpoints/{path.name}", path.read_bytes())
    for path in (local.directory / "examples").iterdir():
        store.put(f"job/examples/{path.name}", path.read_bytes())
    for name in store.objects("job/out"):
        filesystems.delete(f"gs://{BUCKET}", [f"job/out{name}"])
    return f"gs://{BUCKET}/job"


def results(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in objects.items() if name.startswith("influence-")}


def on_disk(local: Local, name: str = "out") -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in (local.directory / name).iterdir()
        if path.is_file()
    }


def records_of(directory: str) -> dict[bytes, tuple[bytes, ...]]:
    """The stored fields of each example of a feature set, except its source."""
    records = {}
    for file in manifests.read(directory, FeatureManifest, "train_features").files:
        for payload in tfrecords.split_frames(filesystems.read_verified(directory, file)):
            feature = tf.train.Example.FromString(payload).features.feature
            keys = sorted(set(feature) - {"source"})
            records[feature["example_id"].bytes_list.value[0]] = tuple(
                feature[key].SerializeToString() for key in keys
            )
    return records


def test_a_whole_run_gives_the_bytes_of_the_disk_while_the_store_fails(
    cloud, store, local, tracin
) -> None:
    store.faults += [
        Fault("broken", "^GET /download/.*/job/examples/train-0"),
        Fault("short", "^GET /download/.*/job/examples/train-1"),
        Fault(503, "^GET /download/.*/job/examples/train-2"),
        Fault(429, "^GET /download/.*/job/examples/test-0"),
        Fault("changed", "^GET /download/.*/job/checkpoints/epoch-2"),
        Fault("broken", "^GET /download/.*/job/checkpoints/epoch-10"),
        Fault("short", "^GET /download/.*/job/out/train_features/features-"),
        Fault("broken", "^PUT /upload/.*job/out/train_features/features-"),
        Fault("lost", "^PUT /upload/.*job/out/test_features/features-"),
        Fault(503, "^PUT /upload/.*job/out/train_features/manifest.json"),
        Fault("lost", "^PUT /upload/.*job/out/influence-00000.parquet"),
        Fault(429, "^PUT /upload/.*job/out/manifest.json"),
    ]
    outcome = tracin(
        *influence(f"{cloud}/examples", f"{cloud}/checkpoints/*.keras", f"{cloud}/out")
    )
    assert outcome.status == 0, outcome.err
    assert [fault for fault in store.faults if fault.times] == []
    objects = store.objects("job/out/")
    assert results(objects) == results(on_disk(local)) != {}
    # It lists the same files with the same checksums; fingerprints tell where the examples are, and
    # when they were written.
    manifest, expected = (json.loads(files["manifest.json"]) for files in (objects, on_disk(local)))
    assert manifest["files"] == expected["files"]
    for name in ("train", "test"):
        assert (
            records_of(f"{cloud}/out/{name}_features")
            == records_of(f"{local.directory}/out/{name}_features")
            != {}
        )
    beside = {
        name
        for name in objects
        if not name.startswith(("influence-", "train_features/", "test_features/"))
    }
    assert beside == {"manifest.json", "report.html"}

    # Complete, it is no work, and other halves of it go on from there.
    store.requests.clear()
    outcome = tracin(
        *influence(f"{cloud}/examples", f"{cloud}/checkpoints/*.keras", f"{cloud}/out")
    )
    assert (outcome.status, store.asked("^(PUT|POST) .*influence-")) == (0, [])
    sets = [f"--{name}_features={cloud}/out/{name}_features" for name in ("train", "test")]
    outcome = tracin("score", *sets, "--k=4", f"--output={cloud}/out-score")
    assert outcome.status == 0, outcome.err
    assert results(store.objects("job/out-score/")) == results(objects)


def test_a_run_that_fails_half_way_leaves_no_manifest_and_the_next_completes_it(
    cloud, store, local, tracin
) -> None:
    words = [
        f"--examples={cloud}/examples/train-*",
        f"--checkpoints={cloud}/checkpoints/*.keras",
        "--id_key=id",
    ]
    features = ["features", *words, f"--output={cloud}/out/features"]
    # Whichever comes third is refused, however often it is tried.
    store.faults.append(
        Fault(403, "^PUT /upload/.*job/out/features/features-", times=1000, after=2)
    )
    outcome = tracin(*features)
    assert outcome.status == 1
    assert re.search(
        r"^tracin features: failed: "
        rf"{cloud}/out/features/features-\S+ "
        r"cannot "
        r"be "
        r"written: "
        r"403 "
        r"Forbidden",
        outcome.err,
        re.M,
    )
    left = store.objects("job/out/features/")
    assert "manifest.json" not in left
    assert sorted(name.split("-")[0] for name in left) == [
        "features",
        "features",
        "finished",
        "finished",
    ]
    outcome = tracin(
        "score",
        *(f"--{name}_features={cloud}/out/features" for name in ("train", "test")),
        f"--output={cloud}/out/score",
    )
    assert outcome.status == 2
    assert "is not a complete set: it has no manifest.json" in outcome.err

    store.faults.clear()
    store.requests.clear()
    outcome = tracin(*features)
    assert outcome.status == 0, outcome.err
    # What had been finished is taken over.
    assert len(store.asked("^PUT /upload/.*job/out/features/features-")) == 1
    assert records_of(f"{cloud}/out/features") == records_of(
        f"{local.directory}/out/train_features"
    )
    assert not any(name.startswith("finished-") for name in store.objects("job/out/features/"))

    # Scoring, refused its last file: results without a manifest, until the next run.
    sets = [
        f"--train_features={cloud}/out/features",
        f"--test_features={local.directory}/out/test_features",
    ]
    store.faults.append(Fault(403, "^PUT /upload/.*job/out/score/manifest.json", times=1000))
    outcome = tracin("score", *sets, "--k=4", f"--output={cloud}/out/score")
    assert outcome.status == 1
    assert f"{cloud}/out/score/manifest.json cannot be written: 403 Forbidden" in outcome.err
    assert "manifest.json" not in store.objects("job/out/score/")
    store.faults.clear()
    outcome = tracin("score", *sets, "--k=4", f"--output={cloud}/out/score")
    assert outcome.status == 0, outcome.err
    assert results(store.objects("job/out/score/")) == results(on_disk(local))
