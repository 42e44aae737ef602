"""Checkpoints that the worker processes of a machine share: loaded once, and once more for each
process that dies with them.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest

from tests.conftest import Tiny, write_records
from tests.stage_one import extract_set
from transforms.core.errors import InputError
from transforms.core.ids import id_array
from transforms.examples.batch import ExampleBatch
from transforms.examples.format import InputFile
from transforms.extraction.feature_files.feature_batch import FeatureBatch
from transforms.extraction.worker.extract_batch import Extraction
from transforms.extraction.worker.extractor import ExtractionPlan
from transforms.extraction.worker.model import Model
from transforms.extraction.worker.per_machine import OnePerMachine
from transforms.models import checkpoint_files, checkpoints
from transforms.models.checkpoints import ModelSpec


def model_of(tiny: Tiny, digests: tuple[str, ...] | None = None) -> Model:
    paths = tuple(map(str, tiny.paths))
    return Model(
        ModelSpec(paths),
        digests or tuple(checkpoint_files.digest(path) for path in paths),
        per_machine=True,
    )


def batch_of(tiny: Tiny, start: int) -> ExampleBatch:
    """Eight examples."""
    rows = range(start, start + 8)
    return ExampleBatch(
        InputFile(0, "in", "in", 1),
        id_array([b"ex-%02d" % i for i in rows]),
        np.array(rows),
        np.zeros((8, 16), np.uint8),
        {},
        (tiny.images[list(rows)],),
        tiny.labels[list(rows), None].astype(np.float64),
        [],
    )


@pytest.mark.parametrize(("share", "loads"), [("process", 2), ("machine", 1)])
def test_worker_processes_load_as_often_as_they_are_asked_to(
    tiny: Tiny, tmp_path: pathlib.Path, share: str, loads: int
) -> None:
    for shard in range(8):
        write_records(tmp_path / "in" / f"s-{shard}", tiny.payloads()[shard::8])
    examples = tmp_path / "in" / "s-*"
    counts = extract_set(
        tiny.paths,
        examples,
        tmp_path / "out",
        share_checkpoints=share,
        options=["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    )
    assert counts["checkpoint-loads"] == loads
    assert counts["examples-extracted"] == 40
    extract_set(tiny.paths, examples, tmp_path / "one")
    records = [
        sorted(
            (path.name.rsplit("-", 1)[0], path.read_bytes())
            for path in (tmp_path / name).glob("features-*")
        )
        for name in ("out", "one")
    ]
    assert len(records[0]) == 8
    assert records[0] == records[1]


def work(model: Model, batches: list[ExampleBatch], loads: str, pipe: Any) -> None:
    """A worker process: extracts the batches that it is sent, and notes each load in a file."""
    load = checkpoints.load

    def noted(spec: ModelSpec) -> Any:
        with open(loads, "a") as log:
            log.write(f"{os.getpid()}\n")
        return load(spec)

    checkpoints.load = noted  # type: ignore[assignment]  # the process ends with this test
    extract = model.extractor()
    while (i := pipe.recv()) is not None:
        pipe.send(extract(batches[i], ExtractionPlan(8)))


def test_when_the_process_that_has_them_dies_the_others_load_them_again(
    tiny: Tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model, batches = model_of(tiny), [batch_of(tiny, 8 * i) for i in range(4)]
    loads = tmp_path / "loads"
    expected = [
        Extraction(checkpoints.load(model.spec))(batch, ExtractionPlan(8)).features
        for batch in batches
    ]
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(3):
        here, there = context.Pipe()
        workers.append(context.Process(target=work, args=(model, batches, str(loads), there)))
        workers[-1].start()
        there.close()
        pipes.append(here)

    def check(extracted: FeatureBatch, i: int) -> None:
        for name in (
            "example_ids",
            "loss_grads",
            "activations",
            "label_probabilities",
            "loss_grad_norms",
        ):
            assert (
                getattr(extracted.features, name).tobytes() == getattr(expected[i], name).tobytes()
            ), name

    try:
        alive = list(range(3))
        for crashes in range(3):
            # All ask at once, each for another batch.
            for number, worker in enumerate(alive):
                pipes[worker].send(number)
            for number, worker in enumerate(alive):
                check(pipes[worker].recv(), number)
            owners = [int(line) for line in loads.read_text().split()]
            assert len(owners) == crashes + 1
            dead = next(i for i in alive if workers[i].pid == owners[-1])
            if crashes < 2:
                alive.remove(dead)
                for worker in alive:
                    pipes[worker].send(3)
                # Some of these calls are under way when it goes, or come right after.
                os.kill(owners[-1], signal.SIGKILL)
                for worker in alive:
                    check(pipes[worker].recv(), 3)
        for worker in alive:
            pipes[worker].send(None)
            workers[worker].join(30)
            assert workers[worker].exitcode == 0
    finally:
        for process in workers:
            process.kill()


def test_an_error_of_a_checkpoint_crosses_from_another_process(
    tiny: Tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny, ("0" * 64,) * 3)
    with pytest.raises(InputError, match="has changed since the run was started"):
        model.extractor()(batch_of(tiny, 0), ExtractionPlan(8))


def test_a_call_that_kills_every_process_is_given_up() -> None:
    calls = []

    def dies() -> None:
        calls.append(1)
        raise EOFError

    with pytest.raises(EOFError):
        OnePerMachine(lambda: dies, "dies")()
    assert len(calls) == 4
