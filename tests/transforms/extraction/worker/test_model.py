"""Checkpoints as a pipeline carries them: checked, and loaded with threads and memory to suit."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests.conftest import RATES, Tiny, build_tiny
from transforms.core.errors import InputError
from transforms.extraction.worker.model import Model, choose_threads
from transforms.models import checkpoint_files
from transforms.models.checkpoints import ModelSpec

T = len(RATES)


@pytest.mark.parametrize(("checkpoints", "threads"), [(1, None), (3, None), (4, 1), (9, 1)])
def test_where_there_is_a_checkpoint_for_each_processor_none_is_split(
    monkeypatch: pytest.MonkeyPatch, checkpoints: int, threads: int | None
) -> None:
    import tensorflow as tf

    chosen: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", chosen.append)
    choose_threads(checkpoints)
    assert chosen == ([] if threads is None else [threads])


def test_a_changed_checkpoint_is_refused_by_the_worker(tmp_path: pathlib.Path) -> None:
    model = build_tiny(softmax=True)
    model.compile("sgd", "sparse_categorical_crossentropy")
    path = tmp_path / "a.keras"
    model.save(path)
    carried = Model(ModelSpec((str(path),)), (checkpoint_files.digest(str(path)),))
    model.layers[-1].bias.assign([1.0, 2.0, 3.0])
    model.save(path)
    with pytest.raises(InputError, match="has changed since the run was started"):
        carried.acquire()


def test_a_gpus_memory_is_taken_as_it_is_needed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    grown = []

    def grow(gpu: str, on: bool) -> None:
        grown.append((gpu, on))
        if gpu == "GPU:0":
            raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    paths = tuple(map(str, tiny.paths))
    loaded = Model(
        ModelSpec(paths), tuple(checkpoint_files.digest(path) for path in paths)
    ).acquire()
    assert grown == [("GPU:0", True), ("GPU:1", True)] and loaded.size == T
