"""Checkpoints found by globs, put in order, and identified by a fingerprint."""

from __future__ import annotations

import pathlib

import pytest

from tests.conftest import RATES, Tiny, build_tiny
from transforms.core.errors import InputError
from transforms.extraction.load_model import find_checkpoints, load_model
from transforms.models.config import ModelConfig


@pytest.mark.parametrize(
    ("listed", "order"),
    [(True, ["epoch-10", "epoch-1", "epoch-2"]), (False, ["epoch-1", "epoch-2", "epoch-10"])],
)
def test_a_list_keeps_its_order_and_a_glob_takes_that_of_training(
    tiny: Tiny, listed: bool, order: list[str]
) -> None:
    names = [f"epoch-{n}" for n in (10, 1, 2)]
    checkpoints = [str(tiny.directory / f"{name}.keras") for name in names]
    by_name = dict(zip(("epoch-1", "epoch-2", "epoch-10"), RATES, strict=True))
    for given in (checkpoints, ",".join(checkpoints)) if listed else (tiny.glob,):
        model = load_model(ModelConfig(given), rates_needed=True)
        assert model.checkpoint_names == tuple(f"{name}.keras" for name in order)
        assert list(model.usable_rates()) == [by_name[name] for name in order]


def test_checkpoints_are_found_without_a_directory(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.directory)
    paths, listed = find_checkpoints("epoch-1*.keras")
    assert sorted(paths) == ["epoch-1.keras", "epoch-10.keras"] and not listed
    assert find_checkpoints("epoch-2.keras") == (["epoch-2.keras"], True)


def test_checkpoints_that_are_missing_or_named_twice_are_refused(tiny: Tiny) -> None:
    for checkpoints, message in (
        (f"{tiny.directory}/no-*", "`checkpoints='.*no-.*'` matches no checkpoint"),
        ([], "`checkpoints` is empty"),
        (f"{tiny.paths[0]},{tiny.glob}", f"names {tiny.paths[0]} twice"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            find_checkpoints(checkpoints)
        assert caught.value.field == "checkpoints"


@pytest.mark.parametrize("rates", [(0.1,), (0.1, 0.2), (1.0, 2.0, 3.0, 4.0)])
def test_learning_rates_are_one_for_each_checkpoint(tiny: Tiny, rates: tuple[float, ...]) -> None:
    expected = r"3 checkpoints \(epoch-1.keras, epoch-2.keras, epoch-10.keras\)"
    with pytest.raises(InputError, match=expected) as caught:
        load_model(ModelConfig(tiny.glob, learning_rates=rates))
    assert caught.value.field == "learning_rates"


def test_a_checkpoint_without_a_rate_is_refused_only_where_rates_are_needed(
    tmp_path: pathlib.Path,
) -> None:
    build_tiny(softmax=True).save(tmp_path / "bare.keras")
    config = ModelConfig(str(tmp_path / "bare.keras"), loss="sparse_categorical_crossentropy")
    model = load_model(config)
    assert model.learning_rates == (None,)
    with pytest.raises(InputError, match=r"no learning rate is known for bare\.keras"):
        model.usable_rates()
    with pytest.raises(InputError, match=r"no learning rate is known for bare\.keras"):
        load_model(config, rates_needed=True)


def test_the_fingerprint_is_of_what_decides_features_and_not_of_rates(tiny: Tiny) -> None:
    first, *_ = tiny.paths
    model = load_model(ModelConfig(str(first)))
    weighed = load_model(ModelConfig(str(first), learning_rates=(2.0,)))
    assert weighed.fingerprint == model.fingerprint and weighed.learning_rates == (2.0,)
    without = load_model(ModelConfig(str(first), include_bias=False))
    other = load_model(ModelConfig(str(tiny.paths[1])))
    assert len({model.fingerprint, without.fingerprint, other.fingerprint}) == 3
