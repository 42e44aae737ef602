"""Whole commands on Google Cloud Storage: the same bytes as on a disk, through what goes wrong on a network."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Outcome, Tiny, write_records
from tests.object_store import Fault, Store, serving
from transforms import counting, staging
from transforms.errors import InputError
from transforms.staging import local_checkpoint

Run = Callable[..., Outcome]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Store]:
    """The store, to which everything in this process is directed; local copies go to a directory of the test's own."""
    from apache_beam.internal.gcp import auth

    (tmp_path / "local").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    # Beam looks for credentials once in a process, for half a minute where there are none.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)
    with serving() as found:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", found.url)
        yield found


def copied() -> int:
    return counting.snapshot().get("checkpoint-files-copied", 0)


# Checkpoints


@pytest.fixture
def checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The content of `gs://bucket/run/a.keras`, which is copied in three pieces."""
    content = bytes(range(256)) * 100
    store.put("run/a.keras", content)
    monkeypatch.setattr(staging, "_PIECE", 10_000)
    counting.reset()
    return content


def test_an_object_is_copied_once_and_in_pieces(store: Store, checkpoint: bytes) -> None:
    path = local_checkpoint("gs://bucket/run/a.keras")
    assert pathlib.Path(path).read_bytes() == checkpoint
    assert local_checkpoint("gs://bucket/run/a.keras") == path
    assert copied() == 1
    pieces = sorted(asked for _, url, asked in store.requests if asked)
    assert pieces == ["bytes=0-9999", "bytes=10000-19999", "bytes=20000-25599"]


def test_a_new_generation_is_copied_again_though_size_and_time_are_the_same(store: Store, checkpoint: bytes) -> None:
    local_checkpoint("gs://bucket/run/a.keras")
    store.put("run/a.keras", checkpoint[::-1])
    assert pathlib.Path(local_checkpoint("gs://bucket/run/a.keras")).read_bytes() == checkpoint[::-1]
    assert copied() == 2


def test_a_truncated_copy_is_not_used(store: Store, checkpoint: bytes) -> None:
    path = pathlib.Path(local_checkpoint("gs://bucket/run/a.keras"))
    path.write_bytes(checkpoint[:500])
    assert pathlib.Path(local_checkpoint("gs://bucket/run/a.keras")).read_bytes() == checkpoint
    assert copied() == 2


def test_all_objects_of_a_tensorflow_checkpoint_are_copied(store: Store) -> None:
    names = ["ckpt-1.index", "ckpt-1.data-00000-of-00002", "ckpt-1.data-00001-of-00002"]
    for name in [*names, "ckpt-11.index", "ckpt-1.index.bak"]:
        store.put(f"run/{name}", name.encode())
    path = pathlib.Path(local_checkpoint("gs://bucket/run/ckpt-1"))
    assert [path.with_name(name).read_text() for name in names] == names
    assert not path.with_name("ckpt-11.index").exists() and not path.with_name("ckpt-1.index.bak").exists()


@pytest.mark.parametrize("kind", ["429", "503", "broken", "short"])
def test_a_checkpoint_arrives_through_faults(kind: str, store: Store, checkpoint: bytes) -> None:
    store.faults.append(Fault("GET", "alt=media", kind, times=2))
    assert pathlib.Path(local_checkpoint("gs://bucket/run/a.keras")).read_bytes() == checkpoint
    assert not store.faults[0].times


def test_an_object_that_is_not_what_its_checksum_says_is_told(store: Store, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.lock:
        found = store.content.objects["bucket"]["run/a.keras"]
        found["crc32c"] = "AAAAAA=="
    with pytest.raises(InputError, match=r"^gs://bucket/run/a.keras cannot be copied to this machine: .*[Cc]hecksum"):
        local_checkpoint("gs://bucket/run/a.keras")
    assert copied() == 3


@pytest.mark.parametrize(
    ("path", "told"),
    [("gs://bucket/run/b.keras", "no such file"), ("gs://bucket/run/b", "no such file"), ("gs://other-bucket/a.keras", "no such bucket")],
)
def test_what_is_not_there_is_told(path: str, told: str, store: Store) -> None:
    with pytest.raises(InputError, match=f"^{path}: {told}$"):
        local_checkpoint(path)


# Commands


@pytest.fixture
def run(tracin: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Callable[..., Outcome]:
    """Runs `tracin influence` with everything below a directory or URL."""

    def influence(root: str, *words: str, output: str = "out") -> Outcome:
        return tracin(
            "influence",
            f"--train_examples={root}/examples/train-*",
            f"--test_examples={root}/examples/test-*",
            f"--checkpoints={root}/checkpoints/epoch-*",
            f"--output={root}/{output}",
            "--id_key=id",
            "--k=5",
            "--runner=FnApiRunner",
            *words,
        )

    return influence


@pytest.fixture
def placed(store: Store, tiny: Tiny, tmp_path: pathlib.Path) -> pathlib.Path:
    """Examples and checkpoints, on the disk and in the bucket under the same names; the directory on the disk."""
    root = tmp_path / "disk"
    payloads = tiny.payloads()
    for shard in range(3):
        write_records(root / "examples" / f"train-{shard}", payloads[shard:30:3])
    write_records(root / "examples" / "test-0", payloads[30:])
    (root / "checkpoints").mkdir()
    for path in tiny.paths:
        (root / "checkpoints" / path.name).write_bytes(path.read_bytes())
    for path in root.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(root)), path.read_bytes())
    return root


RESULTS = ("influence-00000.jsonl", "influence-00000.parquet")


def assert_same_results(store: Store, disk: pathlib.Path, output: str = "out") -> None:
    for name in RESULTS:
        assert store.get(f"{output}/{name}") == (disk / "out" / name).read_bytes(), name
    for place in ("", "train_features/", "test_features/"):
        found, expected = (
            json.loads(store.get(f"{output}/{place}manifest.json")),
            json.loads((disk / "out" / place / "manifest.json").read_text()),
        )
        assert found["counts"] == expected["counts"]
        assert [file["count"] for file in found["files"]] == [file["count"] for file in expected["files"]]


def test_a_whole_run_gives_the_same_bytes_as_on_a_disk(store: Store, placed: pathlib.Path, run: Run) -> None:
    assert run(str(placed)).status == 0
    outcome = run("gs://bucket")
    assert outcome.status == 0, outcome.err
    assert_same_results(store, placed)
    again = run("gs://bucket")
    assert again.status == 0 and "nothing to do" in again.out
    # And with another set in its place.
    assert run("gs://bucket", "--k=3", "--overwrite").status == 0
    assert json.loads(store.get("out/manifest.json"))["settings"]["k"] == 3


@pytest.mark.parametrize("kind", ["429", "503", "broken", "short"])
def test_a_run_gives_the_same_bytes_through_faults(kind: str, store: Store, placed: pathlib.Path, run: Run) -> None:
    assert run(str(placed)).status == 0
    store.faults += [
        Fault("GET", "examples%2F", kind, times=2, after=1),
        Fault("GET", "features-", kind, times=2, after=1),
        Fault("GET", "checkpoints%2F", kind, times=2),
    ]
    if kind != "short":
        store.faults += [Fault("POST", "upload", kind, times=2, after=3), Fault("PUT", "upload", kind, times=2, after=2)]
    outcome = run("gs://bucket")
    assert outcome.status == 0, outcome.err
    assert [fault for fault in store.faults if fault.times and fault.method == "GET"] == []
    assert_same_results(store, placed)


def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(store: Store, placed: pathlib.Path, run: Run) -> None:
    store.faults += [Fault(method, "out", "403", times=1000) for method in ("POST", "PUT")]
    outcome = run("gs://bucket")
    assert outcome.status == 2
    assert outcome.err.startswith("tracin influence: --output='gs://bucket/out' cannot be written: 403 Forbidden: ")
    assert len(outcome.err.splitlines()) == 1
    assert store.names("out") == []


@pytest.mark.parametrize("part", ["train_features%2Ffeatures", "influence-", "manifest"])
def test_a_run_that_fails_half_way_leaves_nothing_that_looks_complete_and_goes_on(
    part: str, store: Store, placed: pathlib.Path, run: Run
) -> None:
    assert run(str(placed)).status == 0
    store.faults += [Fault(method, part, "403", times=1000) for method in ("POST", "PUT")]
    outcome = run("gs://bucket")
    assert outcome.status == 1
    assert (
        outcome.err.startswith("tracin influence: failed: gs://bucket/out/")
        and "cannot be written: 403 Forbidden: " in outcome.err
        and "fault 403" in outcome.err
    )
    assert len(outcome.err.splitlines()) == 1
    assert "out/manifest.json" not in store.names()
    store.faults.clear()
    assert run("gs://bucket").status == 0
    assert_same_results(store, placed)
