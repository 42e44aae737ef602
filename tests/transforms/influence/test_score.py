"""Tiles scored from committed feature sets, and their merge."""

from __future__ import annotations

import dataclasses
import itertools

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

from tests.synthetic import assert_same, draw, full_sort
from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.origins import Origin
from transforms.influence.config import ScoringConfig
from transforms.influence.plan import plan_tiles, protocol_of, scoring_of
from transforms.influence.protocol import ScoredBlock
from transforms.influence.score import (
    Again,
    MergeTopK,
    ScoreInfluence,
    TileScorer,
    estimate_thresholds,
)
from transforms.runtime import counters
from transforms.scoring.influence import Scoring, self_influence
from transforms.scoring.tiles import Tile
from transforms.storage import filesystems
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import feature_record, tfrecords


def committed(directory, features: Features, rows_per_file: int) -> FeatureSet:
    written = []
    for start in range(0, len(features), rows_per_file):
        part = features.take(slice(start, start + rows_per_file))
        payloads = feature_record.encode(
            part, [Origin("source", start + i, b"digest") for i in range(len(part))]
        )
        written.append(
            filesystems.write(
                str(directory),
                f"features-{start:05d}.tfrecord",
                tfrecords.join_frames(payloads),
                len(part),
            )
        )
    _, checkpoints, outputs = features.loss_grads.shape
    manifest = FeatureManifest(
        kind="features",
        fingerprint="extraction",
        settings={"layer": "head"},
        files=tuple(written),
        counts={"examples": len(features)},
        model_fingerprint="model",
        task="class",
        outputs=outputs,
        units=features.activations.shape[2],
        checkpoints=tuple(f"epoch-{t}" for t in range(checkpoints)),
        learning_rates=(0.1, 0.02)[:checkpoints],
        rejected_files=(),
        rejected={},
    )
    return FeatureSet(str(directory), manifest)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return draw(rng, 23, 2, 3, 6, "test-"), draw(rng, 170, 2, 3, 6, "train-")


@pytest.fixture(scope="module")
def sets(arrays, tmp_path_factory):
    return (
        committed(tmp_path_factory.mktemp("test"), arrays[0], 9),
        committed(tmp_path_factory.mktemp("train"), arrays[1], 40),
    )


def score_tile(
    scorer: TileScorer,
    tile: Tile,
    sets: tuple[FeatureSet, FeatureSet],
    config: ScoringConfig,
    estimates: np.ndarray | None = None,
    again: Again | None = None,
) -> ScoredBlock:
    protocol, scoring = protocol_of(config), scoring_of(config, sets[1].manifest)
    return scorer.score(tile, *sets, protocol, scoring, estimates, again)


def score_all(test: FeatureSet, train: FeatureSet, config: ScoringConfig):
    scorer = TileScorer()
    blocks: dict[int, list] = {}
    for tile in plan_tiles(test, train, config):
        block = score_tile(scorer, tile, (test, train), config)
        blocks.setdefault(tile.test_start, []).append(block)
    return blocks


@pytest.mark.parametrize(
    ("test_rows", "train_rows"), [(None, None), (23, 170), (5, 33), (9, 40), (1, 7), (23, 1)]
)
def test_any_grid_gives_the_full_sort(arrays, sets, test_rows, train_rows):
    test, train = arrays
    scoring = Scoring((0.1, 0.02), 6)
    config = ScoringConfig(k=6, test_rows_per_tile=test_rows, train_rows_per_tile=train_rows)
    expected = full_sort(test, train, scoring)
    for start, blocks in score_all(*sets, config).items():
        combine = MergeTopK(6)
        # In every order, and through accumulators merged in two groups, as a runner may.
        for order in itertools.islice(itertools.permutations(blocks), 6):
            left, right = combine.create_accumulator(), combine.create_accumulator()
            for i, block in enumerate(order):
                if i % 2:
                    right = combine.add_input(right, block)
                else:
                    left = combine.add_input(left, block)
            merged = combine.extract_output(combine.merge_accumulators([left, right]))
            n = len(merged.test_ids)
            part = dataclasses.replace(
                expected,
                **{
                    name: dataclasses.replace(
                        ranking.take((ranking.rows >= start) & (ranking.rows < start + n)),
                        rows=ranking.rows[(ranking.rows >= start) & (ranking.rows < start + n)]
                        - start,
                    )
                    for name, ranking in (
                        ("proponents", expected.proponents),
                        ("opponents", expected.opponents),
                    )
                },
            )
            assert_same(merged.best, part)
            assert merged.test_ids.tolist() == test.example_ids[start : start + n].tolist()


def test_a_flipped_byte_is_found(arrays, tmp_path):
    damaged = committed(tmp_path, arrays[1], 100)
    path = tmp_path / damaged.manifest.files[1].name
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is damaged"):
        score_all(damaged, damaged, ScoringConfig(k=3))


def test_another_learning_rate_is_another_score_of_the_same_features(arrays, sets):
    config = ScoringConfig(k=4, learning_rates=(0.5, 0.5))
    (blocks,) = score_all(*sets, config).values()
    assert_same(blocks[0].best, full_sort(*arrays, Scoring((0.5, 0.5), 4)))


def test_a_tile_knows_the_thresholds_of_the_tiles_before_it(arrays, sets):
    # What leaves the tiles shrinks: a candidate below the k-th best of an earlier tile is not among
    # the k best of all.
    config = ScoringConfig(k=6, test_rows_per_tile=23, train_rows_per_tile=40)
    tiles = list(plan_tiles(*sets, config))
    together = TileScorer()
    in_turn = [score_tile(together, tile, sets, config) for tile in tiles]
    alone = [score_tile(TileScorer(), tile, sets, config) for tile in tiles]
    assert sum(len(block.best.proponents) for block in in_turn) < sum(
        len(block.best.proponents) for block in alone
    )
    assert sum(block.nbytes for block in in_turn) < sum(block.nbytes for block in alone)
    # Another k, or another set, knows nothing of them.
    again = score_tile(together, tiles[-1], sets, dataclasses.replace(config, k=7))
    assert len(again.best.proponents) > len(in_turn[-1].best.proponents)


@pytest.mark.parametrize("order", ["as drawn", "the strongest first", "the strongest last"])
def test_thresholds_that_are_estimated_change_nothing(tmp_path, order):
    rng = np.random.default_rng(5)
    test, train = (
        draw(rng, 30, 2, 3, 6, "test-", spread=0.3),
        draw(rng, 1200, 2, 3, 6, "train-", spread=0.3),
    )
    rows = np.argsort(self_influence(train, (0.1, 0.02)))
    train = train.take(
        {
            "as drawn": np.arange(1200),
            "the strongest first": rows[::-1],
            "the strongest last": rows,
        }[order]
    )
    sets = committed(tmp_path / "test", test, 9), committed(tmp_path / "train", train, 150)
    config = ScoringConfig(k=20, test_rows_per_tile=10, train_rows_per_tile=100)
    expected = full_sort(test, train, scoring_of(config, sets[1].manifest))

    def compare(blocks: list) -> None:
        assert sorted(start for start, _ in blocks) == [0, 10, 20]
        for start, block in blocks:
            for name in ("proponents", "opponents"):
                own, all_of_them = getattr(block.best, name), getattr(expected, name)
                theirs = all_of_them.take(
                    (all_of_them.rows >= start) & (all_of_them.rows < start + 10)
                )
                assert (own.rows + start).tolist() == theirs.rows.tolist()
                assert own.ids.tolist() == theirs.ids.tolist()
                assert own.scores.tobytes() == theirs.scores.tobytes()

    counters.reset()
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        named = [
            pipeline | f"Name{name}Set" >> beam.Create([one])
            for name, one in zip(("Test", "Train"), sets, strict=True)
        ]
        assert_that(tuple(named) | ScoreInfluence(config), compare)
    counts = counters.snapshot()
    # A part that is stronger than all others lets estimate too much, and it is seen.
    assert (counts.get("tests-again", 0) > 0) == (order == "the strongest first")
    assert (
        sum(counts[f"pairs-{name}"] for name in ("zero", "blocks", "loss_gradients", "products"))
        == 30 * 1200
    )
    assert (
        counts["pairs-scored"]
        == counts["pairs-planned"]
        == (30 + counts.get("tests-again", 0)) * 1200
    )


def test_what_leaves_the_tiles_shrinks_by_what_the_first_lets_estimate(arrays, sets):
    config = ScoringConfig(k=6, test_rows_per_tile=23, train_rows_per_tile=20)
    first, *others = plan_tiles(*sets, config)
    ((start, estimates),) = estimate_thresholds(
        (0, score_tile(TileScorer(), first, sets, config)), *sets, config
    )
    assert start == 0
    for tile in others:
        told, untold = (
            score_tile(TileScorer(), tile, sets, config, known) for known in (estimates, None)
        )
        for sign, name in enumerate(("proponents", "opponents")):
            own, all_of_them = getattr(told.best, name), getattr(untold.best, name)
            high = np.abs(all_of_them.scores) >= estimates[sign][all_of_them.rows]
            assert own.scores.tobytes() == all_of_them.scores[high].tobytes()
            assert own.ids.tolist() == all_of_them.ids[high].tolist()
        assert told.nbytes < untold.nbytes


def test_what_is_counted_adds_up_to_all_pairs(arrays, sets):
    counters.reset()
    config = ScoringConfig(k=6, test_rows_per_tile=23, train_rows_per_tile=40)
    score_all(*sets, config)
    counts = counters.snapshot()
    assert (
        sum(counts[f"pairs-{name}"] for name in ("zero", "blocks", "loss_gradients", "products"))
        == 23 * 170
        == counts["pairs-scored"]
    )
    assert counts["pairs-scored-exactly"] > 0
    assert counts["bytes-shuffled"] > 0
