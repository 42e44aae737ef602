"""Step, learning rate and order of checkpoints, read without building a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small import compile_model, make_model, save
from transforms.core.errors import InputError
from transforms.models.checkpoint_files import digest
from transforms.models.checkpoint_info import CheckpointInfo, inspect, order
from transforms.models.checkpoints import ModelSpec, load


def test_order() -> None:
    def info(path: str, step: int | None) -> CheckpointInfo:
        return CheckpointInfo(path, step, 0.1, "", "")

    def paths(infos: list[CheckpointInfo]) -> list[str]:
        return [info.path for info in infos]

    known = [info("a", 30), info("b", 4), info("c", 0)]
    assert paths(order(known, keep=False)) == ["c", "b", "a"]
    assert paths(order(known, keep=True)) == ["a", "b", "c"]
    # One unknown or repeated step makes all of them useless.
    for step in (None, 30):
        assert paths(order([info("e-10", 30), info("e-9", step)], keep=False)) == ["e-9", "e-10"]


def test_inspect_every_kind(trained: keras.Model, tmp_path: Path) -> None:
    trained.optimizer.learning_rate.assign(0.0125)  # What ReduceLROnPlateau does.
    save(trained, tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    tf.train.Checkpoint(net=trained, optimizer=trained.optimizer).write(str(tmp_path / "ckpt"))
    for name in ("m.keras", "m.weights.h5", "ckpt"):
        info = inspect(str(tmp_path / name))
        assert (info.step, info.learning_rate, info.note) == (8, 0.0125, ""), name
        assert info.digest == digest(str(tmp_path / name))


def test_inspect_evaluates_a_schedule_at_the_step(
    x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5, 100], [0.5, 0.25, 0.0])
    model = compile_model(make_model(), keras.optimizers.Adam(schedule))
    model.fit(x, y, batch_size=4, verbose=0)
    assert inspect(save(model, tmp_path / "a.keras")).learning_rate == 0.5
    model.fit(x, y, batch_size=4, verbose=0)
    info = inspect(save(model, tmp_path / "b.keras"))
    assert (info.step, info.learning_rate) == (8, 0.25)
    model.save_weights(tmp_path / "b.weights.h5")
    info = inspect(str(tmp_path / "b.weights.h5"))
    assert (info.step, info.learning_rate) == (8, None) and "schedule" in info.note
    tf.train.Checkpoint(model).write(str(tmp_path / "c"))
    info = inspect(str(tmp_path / "c"))
    assert (info.step, info.learning_rate) == (8, None) and "schedule" in info.note


class Unregistered(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step: Any) -> Any:
        return 0.1

    def get_config(self) -> dict[str, Any]:
        return {}


def test_inspect_without_a_rate(tmp_path: Path) -> None:
    bare = make_model()
    info = inspect(save(bare, tmp_path / "bare.keras"))
    assert (info.step, info.learning_rate) == (None, None) and "without an optimizer" in info.note
    bare.save_weights(tmp_path / "bare.weights.h5")
    assert "without an optimizer" in inspect(str(tmp_path / "bare.weights.h5")).note
    info = inspect(
        save(
            compile_model(make_model(), keras.optimizers.SGD(Unregistered())), tmp_path / "u.keras"
        )
    )
    assert (info.step, info.learning_rate) == (0, None) and "Unregistered" in info.note


def test_inspect_looks_through_a_loss_scale_optimizer(
    x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25), initial_scale=2.0)
    model = compile_model(make_model(), optimizer)
    model.fit(x, y, batch_size=4, verbose=0)
    info = inspect(save(model, tmp_path / "m.keras"))
    assert (info.step, info.learning_rate) == (4, 0.25)


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "ckpt.index"])
def test_a_cut_off_file_is_named(name: str, trained: keras.Model, tmp_path: Path) -> None:
    save(trained, tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    tf.train.Checkpoint(model=trained).write(str(tmp_path / "ckpt"))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    path = str(file).removesuffix(".index")
    with pytest.raises(InputError, match=f"{Path(path).name} cannot be read .* cut off or damaged"):
        inspect(path)
    with pytest.raises(InputError, match=Path(path).name):
        (tmp_path / "small.json").write_text(make_model().to_json())
        load(
            ModelSpec(
                (path,),
                model=str(tmp_path / "small.json"),
                loss="SparseCategoricalCrossentropy(from_logits=True)",
            )
        )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("gone.keras", "gone.weights.h5", "gone"):
        with pytest.raises(InputError, match=f"{name}.* exist"):
            inspect(str(tmp_path / name))
