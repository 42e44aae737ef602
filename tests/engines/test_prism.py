"""Prism, Beam's own portable runner: the same bytes as the in-process runner gives, and the same
words where a run fails.

`make test-engines` builds it and names it in the environment variable PRISM.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.conftest import Tiny, damage, write_records
from tests.synthetic import write_set
from tests.transforms.scoring.test_gradients import positions, ragged
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import tfrecords

ROOT = pathlib.Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess]

IN_PROCESS = ("--runner=FnApiRunner",)
PRISM = ("--runner=PrismRunner", f"--prism_location={os.environ.get('PRISM', '')}")
# What a machine with access to the internet runs by this name, where it fetches the program itself.
SWITCH = ("--runner=DirectRunner", PRISM[1])


@pytest.fixture(scope="module", autouse=True)
def prism() -> None:
    assert os.path.isfile(os.environ.get("PRISM", "")), (
        "run `make test-engines`, which builds Prism"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> pathlib.Path:
    """Four files of training examples, one of them compressed, and two of test examples."""
    root = tmp_path_factory.mktemp("data")
    payloads = tiny.payloads()
    for shard in range(4):
        write_records(root / f"train-{shard}", payloads[shard:30:4], "GZIP" if shard == 3 else "")
    for shard in range(2):
        write_records(root / f"test-{shard}", payloads[30 + shard :: 2])
    return root


@pytest.fixture
def tracin(tiny: Tiny, data: pathlib.Path, tmp_path: pathlib.Path) -> Run:
    """Runs a command in a process of its own, as a user does, with its output in
    `tmp_path/NAME`.
    """

    def run(command: str, output: str, *words: str) -> subprocess.CompletedProcess:
        examples = {
            "features": [f"--examples={data}/train-*"],
            "influence": [f"--train_examples={data}/train-*", f"--test_examples={data}/test-*"],
        }
        extraction = (
            [*examples[command], f"--checkpoints={tiny.glob}", "--id_key=id"]
            if command in examples
            else []
        )
        given = [name.split("=")[0] for name in words]
        line = [
            sys.executable,
            "-m",
            "pipeline.cli",
            command,
            *(w for w in extraction if w.split("=")[0] not in given),
        ]
        return subprocess.run(
            [*line, f"--output={tmp_path / output}", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def records(directory: pathlib.Path) -> list[bytes]:
    """The records of a feature set, in its order."""
    found = manifests.read(str(directory), FeatureManifest, "features")
    return [
        payload
        for file in found.files
        for payload in tfrecords.split_frames(filesystems.read_verified(str(directory), file))
    ]


def lines(text: str) -> list[str]:
    """Lines of output, without how long it took and what the counters tell: Prism loses some of a
    bundle now and then.
    """
    return [line for line in text.splitlines() if not line.startswith(("took", "300 pairs"))]


@pytest.mark.parametrize("engine", [PRISM, SWITCH], ids=["PrismRunner", "DirectRunner"])
def test_influence_is_the_same_bytes(
    engine: Sequence[str], tracin: Run, tmp_path: pathlib.Path
) -> None:
    # Many tiles, so that candidates of several are merged.
    words = ("--k=7", "--test_rows_per_tile=4", "--train_rows_per_tile=8")
    expected = tracin("influence", "expected", *words, *IN_PROCESS)
    found = tracin("influence", "found", *words, *engine)
    assert (expected.returncode, found.returncode) == (0, 0), expected.stderr + found.stderr
    for name in ("influence-00000.jsonl", "influence-00000.parquet"):
        assert (tmp_path / "found" / name).read_bytes() == (
            tmp_path / "expected" / name
        ).read_bytes(), name
    for name in ("train_features", "test_features"):
        assert records(tmp_path / "found" / name) == records(tmp_path / "expected" / name)
    assert "300 pairs" in found.stdout
    assert [line.replace("found", "expected") for line in lines(found.stdout)] == lines(
        expected.stdout
    )


def test_features_and_what_was_copied_of_them(
    tracin: Run, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert tracin("features", "first", f"--examples={data}/train-[01]", *PRISM).returncode == 0
    found = tracin("features", "found", f"--base={tmp_path / 'first'}", *PRISM)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].endswith(
        ": read 14 examples, copied 16 that did not change"
    )
    assert tracin("features", "expected", *IN_PROCESS).returncode == 0
    assert sorted(records(tmp_path / "found")) == sorted(records(tmp_path / "expected"))


def test_a_failure_is_told_in_one_line_and_leaves_no_manifest(
    tracin: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    path = write_records(tmp_path / "bad" / "train-0", tiny.payloads())
    path.write_bytes(path.read_bytes()[:-5])
    told = []
    for engine in (IN_PROCESS, PRISM):
        outcome = tracin("features", "out", f"--examples={path}", *engine)
        assert outcome.returncode == 1
        told.append(
            [
                line
                for line in outcome.stderr.splitlines()
                if line.startswith("tracin features: failed: ")
            ]
        )
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert told[0] == told[1] and len(told[0]) == 1
    assert "the file cannot be read from record 39" in told[0][0]


def test_a_run_that_failed_goes_on(
    tracin: Run, data: pathlib.Path, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    directory = tmp_path / "examples"
    payloads = tiny.payloads()
    for shard in range(3):
        write_records(directory / f"train-{shard}", payloads[shard::3])
    whole = (directory / "train-2").read_bytes()
    damage(directory / "train-2", len(whole) - 30)
    words = (f"--examples={directory}/train-*", "--max_rejected_fraction=0", *PRISM)
    failed = tracin("features", "out", *words)
    assert failed.returncode == 1 and "rejected" in failed.stderr
    outcome = tracin(
        "features", "out", f"--examples={directory}/train-*", "--max_rejected_fraction=0.5", *PRISM
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1].endswith(
        ": took over 40 that an earlier attempt had finished"
    )


def test_vectors_and_what_is_found_by_them_are_the_same_bytes(
    tracin: Run, tmp_path: pathlib.Path
) -> None:
    assert tracin("influence", "set", *IN_PROCESS).returncode == 0
    sets = [f"--{name}_features={tmp_path}/set/{name}_features" for name in ("train", "test")]
    for name, engine in (("expected", IN_PROCESS), ("found", PRISM)):
        for command, output, words in (
            (
                "export",
                f"{name}/vectors",
                [f"--features={tmp_path}/set/train_features", "--dimensions=10"],
            ),
            ("index", f"{name}/index", [sets[0], "--dimensions=10"]),
            (
                "search",
                f"{name}/rows",
                [*sets, f"--index={tmp_path}/{name}/index", "--k=3", "--oversampling=2"],
            ),
        ):
            outcome = tracin(command, output, *words, *engine)
            assert outcome.returncode == 0, outcome.stderr
    for path in ("vectors/vectors-00000.npy", "vectors/projection.npz", "index/index-00000.faiss"):
        assert (tmp_path / "found" / path).read_bytes() == (
            tmp_path / "expected" / path
        ).read_bytes(), path
    for path in ("influence-00000.jsonl", "influence-00000.parquet", "recall.json"):
        assert (tmp_path / "found" / "rows" / path).read_bytes() == (
            tmp_path / "expected" / "rows" / path
        ).read_bytes(), path


def test_sums_of_positions_are_the_same_bytes(tracin: Run, tmp_path: pathlib.Path) -> None:
    rng, sets = np.random.default_rng(1), []
    for name, examples in (("train", 40), ("test", 12)):
        sizes = ragged(rng, examples, 6)
        counts = [sum(sizes[i::4]) for i in range(4)]
        drawn = positions(rng, [size for i in range(4) for size in sizes[i::4]], 2, 3, 6, name)
        stored = write_set(
            tmp_path / name,
            counts,
            0,
            name,
            drawn,
            per_token=True,
            counts={"examples": examples, "positions": sum(sizes)},
        )
        sets.append(f"--{name}_features={stored}")
    words = (*sets, "--sum_positions", "--k=7", "--test_rows_per_tile=5", "--train_rows_per_tile=9")
    for name, engine in (("expected", IN_PROCESS), ("found", PRISM)):
        outcome = tracin("score", name, *words, *engine)
        assert outcome.returncode == 0, outcome.stderr
    for name in ("influence-00000.jsonl", "influence-00000.parquet"):
        assert (tmp_path / "found" / name).read_bytes() == (
            tmp_path / "expected" / name
        ).read_bytes(), name
