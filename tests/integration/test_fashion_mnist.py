"""The whole command on Fashion-MNIST: 60,000 × 10,000 examples, 6 checkpoints, top-50."""

from __future__ import annotations

import pathlib

import numpy as np
import orjson
import pytest

from benchmarks import fashion_mnist
from benchmarks.influence import Measured, command, influence_flags, run
from tests.synthetic import exact_scores
from transforms.core.features import Features
from transforms.influence.rows import read_rows
from transforms.scoring.influence import Scoring, self_influence

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not fashion_mnist.available(), reason=fashion_mnist.MISSING),
]

K = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    return fashion_mnist.prepare(tmp_path_factory.mktemp("fashion-mnist"))


@pytest.fixture(scope="module")
def measured(data) -> Measured:
    return run(command("influence", *influence_flags(data, data / "out", K)))


@pytest.fixture(scope="module")
def rows(data, measured) -> list[dict]:
    return read_rows(str(data / "out"))


@pytest.fixture(scope="module")
def arrays(data, measured) -> tuple[Features, Features, Scoring]:
    return read_sets(data / "out")


def read_sets(output: pathlib.Path) -> tuple[Features, Features, Scoring]:
    from transforms.scoring.tiles import spans
    from transforms.storage.read_feature_set import read_feature_set

    test, train = (
        read_feature_set(str(output / f"{name}_features"), "output") for name in ("test", "train")
    )
    return (
        test.read(spans(test.counts, 0, sum(test.counts))),
        train.read(spans(train.counts, 0, sum(train.counts))),
        Scoring(train.manifest.learning_rates, K),
    )


def test_every_test_image_has_its_row_in_order(rows, measured):
    assert [row["test_id"] for row in rows] == [f"test-{i:05d}" for i in range(10_000)]
    assert "scored 600,000,000 pairs" in measured.out


def test_memory_stays_within_the_promise(measured):
    assert measured.peak_bytes < 2.5e9


def test_the_rows_are_the_float64_brute_force(rows, arrays):
    test, train, scoring = arrays
    chosen = np.random.default_rng(0).choice(10_000, 40, replace=False)
    scores = exact_scores(test.take(chosen), train, scoring)
    for row, mine in zip(chosen, scores, strict=True):
        for name, sign in (("proponents", 1), ("opponents", -1)):
            order = np.argsort(-sign * mine, kind="stable")[:K]
            best = [train.example_ids[j].decode() for j in order if sign * mine[j] > 0]
            assert [one["train_id"] for one in rows[row][name]] == best
            np.testing.assert_allclose(
                [one["score"] for one in rows[row][name]], mine[order[: len(best)]], rtol=1e-9
            )


@pytest.fixture(scope="module")
def searched(data, measured) -> pathlib.Path:
    output, train = data / "out", f"--train_features={data}/out/train_features"
    run(command("index", train, f"--output={output}/index", "--dimensions=1024"))
    run(
        command(
            "search",
            train,
            f"--test_features={output}/test_features",
            f"--index={output}/index",
            f"--output={output}/searched",
            f"--k={K}",
            "--oversampling=4",
            "--recall_sample=500",
        )
    )
    return output / "searched"


def test_an_index_of_1024_numbers_finds_nearly_all_among_200_candidates(searched, rows):
    told = orjson.loads((searched / "recall.json").read_bytes())
    found = read_rows(str(searched))
    assert [row["test_id"] for row in found] == [row["test_id"] for row in rows]
    for sign in ("proponents", "opponents"):
        shares = []
        for row, exact in zip(found, rows, strict=True):
            scores = {one["train_id"]: one["score"] for one in exact[sign]}
            same = [one for one in row[sign] if one["train_id"] in scores]
            assert all(one["score"] == scores[one["train_id"]] for one in same)
            shares += [len(same) / len(scores)] if scores else []
        assert np.mean(shares) >= 0.99
        assert told["tests"] == 500 and told[sign]["recall"] == pytest.approx(
            np.mean(shares), abs=0.005
        )


def test_the_model_is_as_good_as_its_training_said(rows):
    assert np.mean([row["test_label"] == row["test_prediction"] for row in rows]) > 0.87


def test_proponents_share_the_class(rows):
    assert (
        np.mean(
            [
                one["train_label"] == row["test_label"]
                for row in rows
                for one in row["proponents"][:10]
            ]
        )
        > 0.9
    )


def test_planted_wrong_labels_are_found_by_the_model_and_not_by_a_randomised_one(data, tmp_path):
    # The randomisation test of Adebayo et al.: what a model without knowledge says must not look
    # like knowledge.
    import keras

    from transforms.scoring.tiles import spans
    from transforms.storage.read_feature_set import read_feature_set

    rng = np.random.default_rng(1)
    images, labels = fashion_mnist.load("t10k")
    wrong = rng.random(2000) < 0.1
    given = np.where(wrong, (labels[:2000] + rng.integers(1, 10, 2000)) % 10, labels[:2000])
    fashion_mnist.write_examples(tmp_path / "examples", "noisy", images[:2000], given, 1)
    trained = sorted((data / "checkpoints").glob("*.keras"))[-1]
    model = keras.models.load_model(trained)
    for layer in model.layers:
        layer.set_weights([rng.normal(size=weight.shape) * 0.1 for weight in layer.get_weights()])
    model.save(tmp_path / "random.keras")

    def found(checkpoint: pathlib.Path) -> float:
        """The area under the ROC curve of wrong labels ranked by self-influence."""
        output = tmp_path / checkpoint.stem
        run(
            command(
                "features",
                f"--examples={tmp_path}/examples/noisy-*",
                f"--checkpoints={checkpoint}",
                f"--output={output}",
            )
        )
        features = read_feature_set(str(output), "output")
        own = self_influence(features.read(spans(features.counts, 0, 2000)), (1.0,))
        rank = own.argsort().argsort()
        return float(
            (rank[wrong].sum() - wrong.sum() * (wrong.sum() - 1) / 2)
            / (wrong.sum() * (~wrong).sum())
        )

    assert found(trained) > 0.95
    assert abs(found(tmp_path / "random.keras") - 0.5) < 0.1


def test_the_largest_self_influences_are_errors_and_rarities(arrays):
    # High self-influence marks what the model finds hard: the last checkpoint gives such a label
    # far less probability.
    _, train, scoring = arrays
    order = np.argsort(-self_influence(train, scoring.learning_rates))
    hard, typical = (
        train.label_probabilities[order[:600], -1],
        train.label_probabilities[order[30_000:], -1],
    )
    assert np.mean(hard) < 0.5 < np.mean(typical)
