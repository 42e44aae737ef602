"""`--sum_positions`: whole examples by the sum over all pairs of their positions, against Keras's
own gradients and a full sort.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from pipeline.commands.plan import PlanScore
from pipeline.flags import parser
from pipeline.running.beam_options import beam_options
from pipeline.running.command import Invocation
from tests.conftest import Outcome, example, write_records
from tests.small import save
from tests.synthetic import write_set
from tests.taggers import SPARSE, C, data, head_of, segmenter, tagger
from tests.transforms.scoring.test_gradients import full_sort, positions, ragged, whole
from transforms.core.features import Features
from transforms.influence.score import TileScorer
from transforms.scoring.influence import NORMALIZATIONS, Scoring
from transforms.storage import manifests
from transforms.storage.manifests import FeatureManifest

Run = Callable[..., Outcome]
N, TESTS = 8, 3
RATES = (0.1, 0.02)


def read(directory: pathlib.Path) -> list[dict[str, Any]]:
    rows = [
        json.loads(line)
        for path in sorted(directory.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [
        row
        for path in sorted(directory.glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ] == rows
    return rows


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.name.startswith("influence-")
    }


# With Keras


@pytest.mark.parametrize("build", [tagger, segmenter])
def test_scores_are_products_of_the_gradients_of_whole_examples(
    build: Any, tracin: Run, tmp_path: pathlib.Path
) -> None:
    model = build()
    x, y = data(model, SPARSE())
    grads, dense = [], head_of(model)
    for t, rate in enumerate(RATES):
        model.compile(keras.optimizers.SGD(rate), SPARSE(from_logits=True))
        model.fit(x, y, epochs=2, batch_size=4, verbose=0)
        save(model, tmp_path / f"m-{t}.keras")
        grads.append([])
        for i in range(N):
            with tf.GradientTape() as tape:
                value = model.loss(y[i : i + 1], model(x[i : i + 1], training=False))
            parts = tape.gradient(value, [dense.kernel.value, dense.bias.value])
            grads[-1].append(
                np.concatenate([part.numpy().ravel() for part in parts]).astype(np.float64)
                * np.sqrt(rate)
            )
    vectors = np.concatenate(grads, axis=1)
    payloads = [example(x=x[i], label=y[i], id=f"s{i}") for i in range(N)]
    write_records(tmp_path / "train", payloads)
    write_records(tmp_path / "test", payloads[:TESTS])
    words = [f"--{name}_examples={tmp_path / name}" for name in ("train", "test")]
    words += [
        f"--checkpoints={tmp_path}/*.keras",
        "--input_keys=x",
        "--id_key=id",
        "--per_token",
        "--runner=FnApiRunner",
    ]
    outcome = tracin(
        "influence", *words, "--sum_positions", "--k=20", f"--output={tmp_path / 'out'}"
    )
    assert outcome.status == 0, outcome.err
    assert f"{TESTS * N} pairs: " in outcome.out and outcome.out.rstrip().endswith(
        f"scored {TESTS * N} pairs"
    )
    sizes = (x != 0).sum(axis=1).tolist() if build is tagger else [6] * N
    shares = tf.nn.softmax(model(x, training=False)).numpy().reshape(N, -1, C)
    for normalize in NORMALIZATIONS:
        sets = [
            f"--{name}_features={tmp_path / 'out' / name}_features" for name in ("train", "test")
        ]
        out = tmp_path / normalize
        outcome = tracin(
            "score",
            *sets,
            "--sum_positions",
            f"--normalize={normalize}",
            "--k=20",
            f"--output={out}",
            "--runner=FnApiRunner",
        )
        assert outcome.status == 0, outcome.err
        lengths = np.linalg.norm(vectors, axis=1)
        divisor = {"none": 1, "cosine": lengths[:TESTS, None] * lengths, "relatif": lengths[None]}[
            normalize
        ]
        expected = vectors[:TESTS] @ vectors.T / divisor
        rows = read(out)
        assert [row["test_id"] for row in rows] == [f"s{i}" for i in range(TESTS)]
        for i, row in enumerate(rows):
            found = {one["train_id"]: one for one in row["proponents"] + row["opponents"]}
            assert sorted(found) == [f"s{j}" for j in range(N)]
            assert [one["train_positions"] for _, one in sorted(found.items())] == sizes
            scores = [one["score"] for _, one in sorted(found.items())]
            np.testing.assert_allclose(
                scores, expected[i], rtol=2e-3, atol=1e-5 * np.abs(expected).max()
            )
            np.testing.assert_allclose(row["self_influence"], lengths[i] ** 2, rtol=1e-3)
            counted = np.arange(6) if build is segmenter else np.flatnonzero(x[i])
            labels = y[i].ravel()[counted]
            assert row["test_positions"] == sizes[i]
            assert row["test_wrong_positions"] == (shares[i][counted].argmax(-1) != labels).sum()
            np.testing.assert_allclose(
                row["test_label_probability"], shares[i][counted, labels].mean(), rtol=1e-4
            )
    assert read(tmp_path / "none") == read(tmp_path / "out")


# With features that are drawn


@dataclasses.dataclass(frozen=True)
class Sets:
    """Positions of examples, and directories where they are stored, in one file and in several."""

    test: Features
    train: Features
    whole: list[str]
    cut: list[str]


def store(
    directory: pathlib.Path, records: Features, sizes: list[int], files: int, prefix: str
) -> str:
    """A committed set whose files end between examples."""
    counts = [sum(sizes[i] for i in part) for part in np.array_split(np.arange(len(sizes)), files)]
    examples = {"examples": len(sizes), "positions": sum(sizes), "rejected": 0}
    return str(write_set(directory, counts, 0, prefix, records, per_token=True, counts=examples))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    directory, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(8)
    sizes = {"test": ragged(rng, 23, 7), "train": ragged(rng, 90, 7)}
    drawn = {name: positions(rng, some, 2, 3, 6, name, spread=1) for name, some in sizes.items()}
    stored: dict[int, list[str]] = {1: [], 5: []}
    for name in ("train", "test"):
        for files, flags in stored.items():
            stored_at = directory / f"{name}-{files}"
            path = store(stored_at, drawn[name], sizes[name], files, name)
            flags.append(f"--{name}_features={path}")
    return Sets(drawn["test"], drawn["train"], stored[1], stored[5])


@pytest.mark.parametrize(("k", "normalize"), [(1, "none"), (4, "cosine"), (95, "relatif")])
def test_any_tiling_gives_the_bytes_of_a_full_sort(
    sets: Sets,
    k: int,
    normalize: str,
    tracin: Run,
    tmp_path: pathlib.Path,
) -> None:
    words = ("--sum_positions", f"--k={k}", f"--normalize={normalize}", "--runner=FnApiRunner")
    tilings = (
        [],
        ["--test_rows_per_tile=5"],
        ["--train_rows_per_tile=1", "--test_rows_per_tile=4"],
        ["--train_rows_per_tile=40"],
    )
    for i, flags in enumerate(tilings):
        outcome = tracin(
            "score",
            *(sets.cut if i else sets.whole),
            *words,
            *flags,
            f"--output={tmp_path / str(i)}",
        )
        assert outcome.status == 0, outcome.err
        assert (
            content(tmp_path / str(i)) == content(tmp_path / "0")
            and len(content(tmp_path / "0")) == 2
        )
    scoring = Scoring(RATES, k, normalize)
    expected = full_sort(whole(sets.test, RATES), whole(sets.train, RATES), scoring)
    rows = read(tmp_path / "0")
    assert len(rows) == 23
    for name in ("proponents", "opponents"):
        ranking = getattr(expected, name)
        told = [
            (one["train_id"].encode(), one["score"], [one["train_positions"]])
            for row in rows
            for one in row[name]
        ]
        assert told == list(
            zip(ranking.ids.tolist(), ranking.scores.tolist(), ranking.labels.tolist(), strict=True)
        )


def test_rows_of_several_files_are_cut_by_examples(
    sets: Sets, tracin: Run, tmp_path: pathlib.Path
) -> None:
    # With so large a k, a file has 10 rows.
    words = ("--sum_positions", "--test_rows_per_tile=7", "--k=200000", "--runner=FnApiRunner")
    for name, stored in (("whole", sets.whole), ("cut", sets.cut)):
        assert tracin("score", *stored, *words, f"--output={tmp_path / name}").status == 0
    assert (
        content(tmp_path / "whole") == content(tmp_path / "cut")
        and len(content(tmp_path / "cut")) == 6
    )
    assert [row["test_id"] for row in read(tmp_path / "cut")] == [f"test{i:04d}" for i in range(23)]


def test_what_a_result_tells_a_person(sets: Sets, tracin: Run, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    words = (*sets.cut, "--sum_positions", "--k=3", f"--output={out}", "--runner=FnApiRunner")
    assert tracin("score", *words).status == 0
    assert manifests.read(str(out), manifests.Manifest, "out").settings["sum_positions"] is True
    assert "nothing to do" in tracin("score", *words).out
    outcome = tracin("score", *(word for word in words if word != "--sum_positions"))
    assert outcome.status == 2 and "sum_positions was true, is null" in outcome.err
    row = read(out)[0]
    page = (out / "report.html").read_text()
    assert "Scores are sums over all pairs of positions of two examples" in page
    shown = re.sub(r"<[^>]+>", "", page)
    assert (
        f"{row['test_positions']} positions, {row['test_wrong_positions']} of them predicted "
        "otherwise" in shown
    )
    for name in ("proponents", "opponents"):
        assert all(one["train_id"] in page for one in row[name])
    told = tracin("show", str(out), "--rows=1").out
    first = row["proponents"][0]
    assert row["test_id"] in told and "wrong positions" in told
    assert re.sub(
        r"\s+",
        " ",
        f"{first['train_id']} ({first['train_positions']} positions) {first['score']:+.4g}",
    ) in re.sub(r"\s+", " ", told)
    assert (
        f"test_wrong_positions    {row['test_wrong_positions']}"
        in tracin("show", str(out), f"--id={row['test_id']}").out
    )


def test_a_regression_has_neither_wrong_positions_nor_probabilities(
    tracin: Run, tmp_path: pathlib.Path
) -> None:
    rng, sets = np.random.default_rng(9), []
    for name, n in (("train", 6), ("test", 3)):
        sizes = ragged(rng, n, 4)
        drawn = positions(rng, sizes, 2, 3, 6, name)
        unknown = np.full(len(drawn), np.nan, np.float32)
        values = rng.normal(size=(len(drawn), 3))
        drawn = dataclasses.replace(
            drawn,
            labels=values,
            predictions=values + 1,
            label_probabilities=np.stack([unknown, unknown], 1),
        )
        counts = {"examples": n, "positions": sum(sizes)}
        stored = write_set(
            tmp_path / name,
            [sum(sizes)],
            0,
            name,
            drawn,
            per_token=True,
            counts=counts,
            task="regression",
        )
        sets.append(f"--{name}_features={stored}")
    assert (
        tracin(
            "score",
            *sets,
            "--sum_positions",
            f"--output={tmp_path / 'out'}",
            "--runner=FnApiRunner",
        ).status
        == 0
    )
    rows = read(tmp_path / "out")
    assert [(row["test_wrong_positions"], row["test_label_probability"]) for row in rows] == [
        (None, None)
    ] * 3
    assert all(row["test_positions"] > 0 and row["proponents"] for row in rows)
    assert "predicted otherwise" not in (tmp_path / "out" / "report.html").read_text()
    assert tracin("show", str(tmp_path / "out")).status == 0


@pytest.mark.parametrize(
    "flags", [[], ["--test_rows_per_tile=5", "--train_rows_per_tile=30", "--k=60"]]
)
def test_what_is_planned_is_what_is_done(
    sets: Sets, flags: list[str], tracin: Run, tmp_path: pathlib.Path
) -> None:
    words = (*sets.cut, "--sum_positions", *flags)
    cost = json.loads(tracin("plan", *words, "--json").out)["cost"]
    scored = []
    score = TileScorer.score

    def scoring(self: Any, tile: Any, *rest: Any) -> Any:
        scored.append((tile, score(self, tile, *rest)))
        return scored[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileScorer, "score", scoring)
        assert (
            tracin("score", *words, f"--output={tmp_path / 'out'}", "--runner=FnApiRunner").status
            == 0
        )
    assert (cost["pairs"], cost["result_rows"], cost["flops"]) == (
        23 * 90,
        23,
        23 * 90 * 2 * 2 * 3 * 6,
    )
    assert cost["tiles"] == len(scored) and cost["test_blocks"] == len(
        {tile.test_start for tile, _ in scored}
    )
    assert max(len(block.test_ids) for _, block in scored) == cost["test_rows"]
    sent = sum(len(block.best.proponents) + len(block.best.opponents) for _, block in scored)
    assert 0 < sent <= cost["candidates"]


def test_the_graph_that_is_planned_for_dataflow_sums_positions(sets: Sets) -> None:
    words = [*sets.cut, "--sum_positions", "--output=gs://bucket/out"]
    args, flags = parser.parse("plan", words)
    pipeline = beam.Pipeline()
    PlanScore.prepare(Invocation(args, flags, beam_options(flags), 0.0)).build(pipeline)
    steps = {one.unique_name for one in pipeline.to_runner_api().components.transforms.values()}
    assert {
        "ScoreInfluence/PlanTiles/CountPositions",
        "ScoreInfluence/ScoreTiles",
        "WriteInfluence/CommitInfluence",
    } <= steps


def test_worker_processes_give_the_same_bytes(
    sets: Sets, tracin: Run, tmp_path: pathlib.Path
) -> None:
    flags = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    words = (*sets.cut, "--sum_positions", "--test_rows_per_tile=9", "--train_rows_per_tile=20")
    for name, more in (("one", list[str]()), ("two", flags)):
        assert (
            tracin(
                "score", *words, *more, f"--output={tmp_path / name}", "--runner=FnApiRunner"
            ).status
            == 0
        )
    assert content(tmp_path / "one") == content(tmp_path / "two")


# What is refused


def refused(outcome: Outcome) -> str:
    assert outcome.status == 2 and len(outcome.err.strip().splitlines()) == 1, outcome
    return outcome.err


def test_sets_of_examples_have_no_positions(
    sets: Sets, tracin: Run, tmp_path: pathlib.Path
) -> None:
    train = write_set(tmp_path / "plain", [30], 1, "train-")
    flags = [f"--train_features={train}", sets.whole[1], "--sum_positions"]
    for command in ("score", "plan"):
        told = refused(tracin(command, *flags, f"--output={tmp_path / 'out'}"))
        assert (
            f"the records of {train} are examples: leave it out, or extract both sets with "
            "--per_token" in told
        )
    told = refused(
        tracin(
            "influence",
            "--train_examples=a",
            "--test_examples=b",
            "--checkpoints=c",
            "--output=d",
            "--sum_positions",
        )
    )
    assert (
        "--sum_positions adds up the positions of examples: they are told apart with --per_token"
        in told
    )
    numbers = [
        f"--{name}=10"
        for name in ("train_count", "test_count", "checkpoint_count", "outputs", "units")
    ]
    assert "--train_count tells nothing of positions" in refused(
        tracin("plan", *numbers, "--sum_positions")
    )


def test_gradients_and_files_that_do_not_fit_into_memory(
    sets: Sets, tracin: Run, tmp_path: pathlib.Path
) -> None:
    words = (*sets.whole, "--sum_positions", f"--output={tmp_path / 'out'}", "--runner=FnApiRunner")
    told = refused(tracin("score", *words, "--memory_gb=0.3"))
    assert (
        "--memory_gb=0.3: 0.3 GB for one worker process are too little for gradients of 2 × 3 × 6 "
        "numbers: it needs 0.34 GB" in told
    )
    (directory,) = (pathlib.Path(flag.partition("=")[2]) for flag in sets.whole[:1])
    # An example with very many positions makes a file that is larger than others.
    found = manifests.read(str(directory), FeatureManifest, "train_features")
    large = dataclasses.replace(found, files=(dataclasses.replace(found.files[0], size=2 << 30),))
    manifests.write(str(tmp_path / "large"), large)
    for command in ("score", "plan"):
        told = refused(tracin(command, f"--train_features={tmp_path / 'large'}", *words[1:]))
        assert "and a file of 2.11 GB more than others: it needs 8.79 GB" in told
