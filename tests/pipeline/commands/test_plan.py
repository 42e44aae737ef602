"""`tracin plan`: what it predicts is what `tracin score` then does, and it starts nothing."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import Outcome
from tests.synthetic import write_set

Run = Callable[..., Outcome]
ROOT = pathlib.Path(__file__).parents[3]
COUNTS = (
    "--train_count=60000",
    "--test_count=10000",
    "--checkpoint_count=6",
    "--outputs=10",
    "--units=129",
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("sets")
    train = write_set(directory / "train", [400, 400, 370], 1, "train-")
    return [
        f"--train_features={train}",
        f"--test_features={write_set(directory / 'test', [90, 0, 33], 2, 'test-')}",
    ]


def planned(outcome: Outcome) -> dict:
    assert outcome.status == 0, outcome.err
    assert outcome.err == "" and outcome.out.count("\n") == 1
    return json.loads(outcome.out)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--test_rows_per_tile=50", "--train_rows_per_tile=300", "--k=7"],
        [
            "--test_rows_per_tile=1000",
            "--train_rows_per_tile=400",
            "--k=2000",
            "--normalize=cosine",
        ],
        [
            "--train_rows_per_tile=70",
            "--test_rows_per_tile=123",
            "--k=1",
            "--memory_gb=0.4",
            "--learning_rates=0.5,0.25",
        ],
    ],
)
def test_what_is_predicted_is_what_score_then_does(
    sets: list[str],
    flags: list[str],
    tracin: Run,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transforms.influence.protocol import ScoredBlock
    from transforms.influence.score import TileScorer, process_scorer
    from transforms.scoring.tiles import Tile
    from transforms.storage import filesystems

    words = [*sets, *flags, f"--output={tmp_path / 'out'}"]
    told = planned(tracin("plan", *words, "--json"))
    assert not (tmp_path / "out").exists()

    read = {"train": 0, "test": 0}
    tiles, sent = [], 0
    read_verified, score = filesystems.read_verified, TileScorer.score

    def reading(directory: str, file: filesystems.StoredFile) -> bytes:
        read[pathlib.Path(directory).name] += file.size
        return read_verified(directory, file)

    def scoring(self: TileScorer, tile: Tile, *rest: object) -> ScoredBlock:
        nonlocal sent
        block = score(self, tile, *rest)
        tiles.append(tile)
        sent += len(block.best.proponents) + len(block.best.opponents)
        return block

    monkeypatch.setattr(filesystems, "read_verified", reading)
    monkeypatch.setattr(TileScorer, "score", scoring)
    process_scorer.cache_clear()  # so that it has no block of an earlier run
    outcome = tracin("score", *words)
    assert outcome.status == 0, outcome.err
    assert outcome.out.rstrip().endswith(f"scored {told['cost']['pairs']:,} pairs")
    cost = told["cost"]
    assert cost["pairs"] == 123 * 1170
    assert cost["tiles"] == len(tiles)
    assert cost["test_blocks"] == len({tile.test_start for tile in tiles})
    assert read["train"] == cost["train_bytes_read"]
    assert read["test"] == cost["test_bytes_read"] <= cost["test_bytes_read_at_most"]
    assert 0 < sent <= cost["candidates"]
    assert cost["result_files"] == len(list((tmp_path / "out").glob("influence-*")))
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("influence-*"))
    # Parquet tells much of its columns before the first row.
    assert 0.6 * written < cost["result_bytes"] + 5000 < 1.6 * written + 5000
    assert told["within_memory"]


def test_the_grid_is_that_of_the_run(sets: list[str], tracin: Run) -> None:
    from transforms.influence.config import ScoringConfig
    from transforms.influence.plan import plan_tiles
    from transforms.storage.read_feature_set import read_feature_set

    train, test = (read_feature_set(word.split("=")[1], "features") for word in sets)
    for memory, test_rows, train_rows in (
        (0.36, None, None),
        (0.345, None, 90),
        (0.34, 11, None),
        (2, 5000, 5000),
    ):
        config = ScoringConfig(
            k=20, memory_gb=memory, test_rows_per_tile=test_rows, train_rows_per_tile=train_rows
        )
        tiles = list(plan_tiles(test, train, config))
        given = [
            f"--{name}_rows_per_tile={rows}"
            for name, rows in (("test", test_rows), ("train", train_rows))
            if rows
        ]
        cost = planned(tracin("plan", *sets, "--k=20", f"--memory_gb={memory}", *given, "--json"))[
            "cost"
        ]
        assert cost["tiles"] == len(tiles)
        assert cost["test_rows"] == max(sum(map(len, tile.tests)) for tile in tiles)
        assert cost["train_rows"] == max(sum(map(len, tile.trains)) for tile in tiles)
        assert cost["chunk_rows"] == min(tiles[0].chunk_rows, cost["train_rows"])


def test_the_table_tells_what_the_object_does(sets: list[str], tracin: Run) -> None:
    flags = [*sets, "--test_rows_per_tile=50", "--train_rows_per_tile=300", "--k=7"]
    told, table = planned(tracin("plan", *flags, "--json")), tracin("plan", *flags).out
    rows = dict(re.match(r"(\S+(?: \S+)*) {2,}(.*)", line).groups() for line in table.splitlines())
    assert list(rows) == [
        "training examples",
        "test examples",
        "features",
        "pairs",
        "arithmetic",
        "tiles",
        "chunks",
        "read",
        "memory",
        "shuffled",
        "result",
    ]
    assert re.fullmatch(r"1,170, [\d.]+ KB in 3 files", rows["training examples"])
    assert rows["features"] == "2 checkpoints, 3 outputs, 6 units"
    assert rows["pairs"] == "143,910"
    assert rows["arithmetic"] == "at most 5.2 Mflop, if every pair is multiplied"
    assert (
        rows["tiles"]
        == "12: 3 blocks of up to 50 test examples × 4 ranges of up to 300 training examples"
    )
    assert rows["chunks"] == "12 of up to 300 training examples"
    assert "read 3 times" in rows["read"] and "(at most " in rows["read"]
    assert rows["memory"].endswith("within the 2.0 GB of a worker process")
    assert rows["shuffled"].startswith(f"at most {told['cost']['candidates']:,} candidates")
    assert rows["result"].startswith("123 rows")


def test_numbers_stand_for_feature_sets_that_are_not_there_yet(
    sets: list[str], tracin: Run
) -> None:
    numbers = [
        "--train_count=1170",
        "--test_count=123",
        "--checkpoint_count=2",
        "--outputs=3",
        "--units=6",
    ]
    there, to_be = (planned(tracin("plan", *flags, "--k=5", "--json")) for flags in (sets, numbers))
    for name in ("pairs", "flops", "tiles", "memory_bytes", "candidates", "result_bytes"):
        assert to_be["cost"][name] == there["cost"][name], name
    for name in ("train", "test"):
        assert to_be[name]["examples"] == there[name]["examples"]
        assert to_be[name]["bytes"] == pytest.approx(there[name]["bytes"], rel=0.1)


def test_a_block_that_takes_more_than_the_memory_is_told(tracin: Run) -> None:
    flags = [*COUNTS, "--memory_gb=0.5", "--test_rows_per_tile=10000"]
    outcome = tracin("plan", *flags)
    assert outcome.status == 0
    assert re.search(
        r"^memory .* MORE THAN the 500\.0 MB of a worker process$", outcome.out, flags=re.MULTILINE
    )
    assert planned(tracin("plan", *flags, "--json"))["within_memory"] is False


def test_worker_processes_share_the_memory(tracin: Run) -> None:
    alone, shared = (
        planned(tracin("plan", *COUNTS, "--json", *more))
        for more in ([], ["--direct_running_mode=multi_processing", "--direct_num_workers=4"])
    )
    assert (alone["processes"], shared["processes"]) == (1, 4)
    assert (
        shared["memory_bytes_allowed"]
        == alone["memory_bytes_allowed"] / 4
        >= shared["cost"]["memory_bytes"]
    )
    outcome = tracin(
        "plan", *COUNTS, "--direct_running_mode=multi_processing", "--direct_num_workers=4"
    )
    assert "of a worker process (4 on a machine)" in outcome.out


def test_neither_tensorflow_is_loaded_nor_anything_written(tmp_path: pathlib.Path) -> None:
    program = (
        "import sys; from pipeline import cli; "
        f"cli.main({['plan', *COUNTS, '--output=out']}); print('tensorflow' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "600,000,000" in done.stdout
    assert not list(tmp_path.iterdir())


def assert_told(outcome: Outcome, *parts: str) -> None:
    """One line says what is wrong, and nothing else."""
    assert outcome.status == 2 and outcome.out == "", outcome
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("tracin plan: "), outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            [],
            [
                "missing --train_features, --test_features, or",
                "--train_count, --test_count, --checkpoint_count, --outputs, --units",
            ],
        ),
        (["--train_features=a"], ["missing --test_features;"]),
        (COUNTS[:-1], ["missing --units;"]),
        (["--units=3"], ["missing --train_count, --test_count, --checkpoint_count, --outputs;"]),
        ([*COUNTS, "--test_features=a"], ["--test_features and --train_count exclude each other"]),
        ([*COUNTS, "--train_count=0"], ["--train_count", "from 1 to 10,000,000,000", "'0'"]),
        ([*COUNTS, "--test_count=1e6"], ["--test_count", "'1e6'"]),
        ([*COUNTS, "--units=100000000000"], ["--units", "'100000000000'"]),
        ([*COUNTS, "--unit=3"], ["--unit", "did you mean --units?"]),
        (
            [*COUNTS, "--learning_rates=1,2"],
            ["--learning_rates has 2 numbers, --checkpoint_count is 6"],
        ),
        ([*COUNTS, "--memory_gb=0.1"], ["--memory_gb=0.1", "it needs 0."]),
        ([*COUNTS, "--runner=Nobody"], ["--runner=Nobody"]),
        ([*COUNTS, "--runners=1"], ["unknown flag --runners"]),
        ([*COUNTS, "--json=maybe"], ["--json"]),
    ],
)
def test_what_cannot_be_planned_is_told_in_one_line(
    tracin: Run, words: list[str], parts: list[str]
) -> None:
    assert_told(tracin("plan", *words), *parts)


def test_sets_that_score_would_refuse_are_refused(
    sets: list[str], tracin: Run, tmp_path: pathlib.Path
) -> None:
    train, test = sets
    assert_told(
        tracin("plan", train, f"--test_features={tmp_path}/none"),
        "--test_features",
        "is not a complete set",
    )
    other = write_set(
        tmp_path / "other", [3], 3, "x-", model_fingerprint="other", settings={"layer": "logits"}
    )
    assert_told(
        tracin("plan", train, f"--test_features={other}"),
        "are features of different models (different layer)",
    )
    empty = write_set(tmp_path / "empty", [0], 3, "x-")
    assert_told(
        tracin("plan", f"--train_features={empty}", test),
        "--train_features",
        "there is nothing to score against",
    )
    without = write_set(tmp_path / "without", [3], 3, "x-", learning_rates=(None, None))
    assert_told(
        tracin("plan", f"--train_features={without}", test), "no learning rate is known for epoch-1"
    )
    assert_told(tracin("plan", *sets, "--learning_rates=1"), "--learning_rates has 1 numbers")
    assert_told(
        tracin("plan", *sets, "--learning_rates=1,-1"), "the learning rate of epoch-2 is -1"
    )
    assert (
        planned(tracin("plan", train, f"--test_features={empty}", "--json"))["cost"]["pairs"] == 0
    )
