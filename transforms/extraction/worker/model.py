"""The checkpoints as a pipeline carries them: loaded once per process, or once per machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Callable

import tensorflow as tf
from apache_beam.utils.shared import Shared

from transforms.core.errors import InputError
from transforms.examples.batch import ExampleBatch
from transforms.extraction.feature_files.feature_batch import FeatureBatch
from transforms.extraction.worker.extract_batch import Extraction
from transforms.extraction.worker.extractor import ExtractionPlan
from transforms.extraction.worker.per_machine import OnePerMachine
from transforms.models import checkpoint_files, checkpoints
from transforms.models.checkpoints import Checkpoints, ModelSpec
from transforms.runtime import counters
from transforms.storage import staging


@dataclasses.dataclass(frozen=True)
class Model:
    """The checkpoints as a pipeline carries them: what to load, and handles to load it once.

    Attributes:
        spec: what to load; paths may be remote.
        digests: SHA-256 of each checkpoint's content; a worker refuses another content.
        per_machine: whether the worker processes of a machine share the checkpoints that one of
            them has loaded, instead of each loading its own.
        shared: handle of the loaded checkpoints; equal in all copies of this object, on all threads
            of a process.
        extraction: likewise, of the object that extracts with them.
        tag: likewise, for all processes of a machine.
    """

    spec: ModelSpec
    digests: tuple[str, ...]
    per_machine: bool = False
    shared: Shared = dataclasses.field(default_factory=Shared)
    extraction: Shared = dataclasses.field(default_factory=Shared)
    tag: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def acquire(self) -> Checkpoints:
        """Returns the loaded checkpoints, shared by all who hold them in this process.

        Raises:
            InputError: they cannot be loaded, or have changed since the pipeline was made.
        """
        return self.shared.acquire(self._load)

    def extractor(self) -> Callable[[ExampleBatch, ExtractionPlan], FeatureBatch]:
        """Returns a function that extracts batches.

        It runs the checkpoints in this process, or in the one of its machine that holds them.
        """
        if self.per_machine:
            return OnePerMachine(self._extraction, self.tag)
        return self._extraction()

    def _extraction(self) -> Extraction:
        return self.extraction.acquire(lambda: Extraction(self.acquire()))

    def _load(self) -> Checkpoints:
        local = localize(self.spec)
        for path, stored, digest in zip(
            local.checkpoints, self.spec.checkpoints, self.digests, strict=True
        ):
            if checkpoint_files.digest(path) != digest:
                raise InputError(f"{stored} has changed since the run was started: start it again")
        _grow_gpu_memory()
        counters.add("checkpoint-loads")
        return checkpoints.load(local)


def choose_threads(checkpoints: int) -> None:
    """Sets TensorFlow's threads for so many checkpoints; without effect once TensorFlow computes.

    Checkpoints do not wait for each other. So where there is one for each processor, each runs in
    one thread: to split every single operation costs a small network a fifth of its time.
    """
    if checkpoints >= len(os.sched_getaffinity(0)):
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(1)


def localize(spec: ModelSpec) -> ModelSpec:
    """Copies a model's remote files to this machine and returns the model with the local paths."""
    model = spec.model
    if model is not None and model.endswith((".keras", ".json")):
        model = staging.local_checkpoint(model)
    return dataclasses.replace(
        spec, checkpoints=tuple(map(staging.local_checkpoint, spec.checkpoints)), model=model
    )


def _grow_gpu_memory() -> None:
    """Makes TensorFlow take a GPU's memory as it needs it.

    Else the first process takes all of it, and the next one on the same machine dies.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        # It cannot be changed once the GPU is in use.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
