"""Batches padded, traced and halved: no bit of a feature changes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.conftest import CLASSES, RATES, UNITS, Tiny
from tests.stage_one import assert_same_features
from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.extraction.worker.extractor import ExtractionPlan, FeatureExtractor
from transforms.models.checkpoints import Checkpoints, ModelSpec, load
from transforms.runtime import counters

T = len(RATES)


def test_padding_a_batch_does_not_touch_its_rows(tiny: Tiny) -> None:
    loaded = load(ModelSpec(tuple(map(str, tiny.paths))))
    labels = tiny.labels[:, None].astype(np.float64)
    extractor = FeatureExtractor(loaded, ExtractionPlan(40))
    ids = [f"ex-{i:02d}" for i in range(40)]
    whole = extractor(ids, [tiny.images], labels)
    assert whole.loss_grads.shape == (40, T, CLASSES) and whole.activations.shape == (
        40,
        T,
        UNITS + 1,
    )
    few = extractor(ids[:3], [tiny.images[:3]], labels[:3])
    assert_same_features(few, whole.take(slice(0, 3)))


def test_batches_of_other_lengths_are_computed_by_a_trace_of_their_own(
    tmp_path: pathlib.Path,
) -> None:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((None, 4)), layers.GlobalMaxPooling1D(), layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "model.keras")
    extractor = FeatureExtractor(
        load(ModelSpec((str(tmp_path / "model.keras"),))), ExtractionPlan(8)
    )
    rng = np.random.default_rng(0)
    for length in (5, 7, 5):
        sequences = rng.normal(size=(8, length, 4)).astype(np.float32)
        features = extractor([f"ex-{i}" for i in range(8)], [sequences], np.zeros((8, 1)))
        assert features.activations[:, 0, :4].tolist() == sequences.max(axis=1).tolist()


@pytest.fixture
def greedy(tmp_path: pathlib.Path) -> Callable[[int], Checkpoints]:
    """Loads a network that asks for more memory than any machine has where a batch has more than so
    many rows.
    """
    import keras
    import tensorflow as tf

    @keras.saving.register_keras_serializable("tests")
    class Greedy(keras.layers.Layer):
        def __init__(self, most: int, **others: Any) -> None:
            super().__init__(**others)
            self.most = most

        def call(self, vectors: Any) -> Any:
            beyond = tf.maximum(tf.shape(vectors, tf.int64)[0] - self.most, 0)
            return vectors + tf.reduce_sum(tf.broadcast_to(vectors[:1, :1], [beyond, 1 << 50]))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "most": self.most}

    def build(most: int) -> Checkpoints:
        layers = keras.layers
        model = keras.Sequential(
            [layers.Input((5,)), Greedy(most), layers.Dense(7, activation="relu"), layers.Dense(3)]
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        keras.utils.set_random_seed(1)
        for layer in model.layers[1:]:
            layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape))
        model.save(tmp_path / f"{most}.keras")
        return load(ModelSpec((str(tmp_path / f"{most}.keras"),)))

    return build


def test_batches_are_halved_until_they_fit_into_memory(
    greedy: Callable[[int], Checkpoints], caplog: pytest.LogCaptureFixture
) -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    ids, labels = [f"{i:02d}" for i in range(40)], np.zeros((40, 1))
    whole = FeatureExtractor(greedy(40), ExtractionPlan(40))(ids, [inputs], labels)
    assert whole.loss_grads.any() and not caplog.records
    counters.reset()
    extractor = FeatureExtractor(greedy(12), ExtractionPlan(40))
    assert_same_features(extractor(ids, [inputs], labels), whole)
    assert counters.snapshot()["batches-halved"] == 2
    told = [
        record.getMessage()
        for record in caplog.records
        if record.name == "transforms.extraction.worker.extractor"
    ]
    assert len(told) == 2 and "40 examples at once" in told[0] and "going on with 10" in told[1]
    # What did not fit once is not tried again.
    assert_same_features(extractor(ids[:15], [inputs[:15]], labels[:15]), whole.take(slice(15)))
    assert counters.snapshot()["batches-halved"] == 2


def test_a_model_too_large_for_the_smallest_batch_is_refused(
    greedy: Callable[[int], Checkpoints],
) -> None:
    with pytest.raises(
        InputError,
        match=r"^the model runs out of memory with 2 examples "
        r"at "
        r"once "
        r"\(.*OOM.*\): "
        r"use "
        r"workers "
        r"with more",
    ):
        FeatureExtractor(greedy(1), ExtractionPlan(8))(
            ["a"], [np.zeros((1, 5), np.float32)], np.zeros((1, 1))
        )


@pytest.mark.parametrize("size", [1, 5, 33])
def test_matrix_products_of_a_real_networks_width_give_the_same_bits_in_any_batch(
    tmp_path: pathlib.Path, size: int
) -> None:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((784,)), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "a.keras")
    loaded = load(ModelSpec((str(tmp_path / "a.keras"),)))
    inputs = np.random.default_rng(0).normal(size=(40, 784)).astype(np.float32)
    ids, labels = [f"{i:02d}" for i in range(40)], np.zeros((40, 1))
    whole = FeatureExtractor(loaded, ExtractionPlan(40))(ids, [inputs], labels)
    extractor = FeatureExtractor(loaded, ExtractionPlan(size))
    parts = [
        extractor(ids[i : i + size], [inputs[i : i + size]], labels[i : i + size])
        for i in range(0, 40, size)
    ]
    assert_same_features(Features.concatenate(parts), whole)
