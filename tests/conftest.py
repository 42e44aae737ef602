"""What several tests need.

Sections:
    environment     how TensorFlow behaves, set before it is imported
    records         serialized examples, and TFRecord files written by TensorFlow's own writer
    model           a tiny network with dropout and batch norm, its checkpoints and its data, made
                    once a session
    command line    a command run in this process: exit status, standard output, standard error
"""

from __future__ import annotations

import os

# Environment: before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest

# Records


def feature(value: Any) -> Any:
    """A `tf.train.Feature`: text and bytes (or a list of them) as bytes, whole numbers as int64,
    others as float.
    """
    import tensorflow as tf

    if isinstance(value, (bytes, str)):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(part, (bytes, str)) for part in value):
        data = [part.encode() if isinstance(part, str) else part for part in value]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=data))
    array = np.asarray(value).ravel()
    if array.dtype.kind in "iub":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=array.tolist()))
    return tf.train.Feature(float_list=tf.train.FloatList(value=array.tolist()))


def example(**values: Any) -> bytes:
    """A serialized `tf.train.Example`."""
    import tensorflow as tf

    fields = {key: feature(value) for key, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=fields)).SerializeToString(
        deterministic=True
    )


def write_records(
    path: pathlib.Path, payloads: Iterable[bytes], compression: str = ""
) -> pathlib.Path:
    """A TFRecord file, written by TensorFlow; `compression` is `""` or `"GZIP"`."""
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


def damage(path: pathlib.Path, offset: int) -> None:
    """Flips one bit of the byte at `offset`."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


# Model

SHAPE = (4, 4, 1)
UNITS = 6
CLASSES = 3
RATES = (0.5, 0.125, 0.25)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Checkpoints of the tiny network (in training's order), and examples that it was trained
    on.
    """

    directory: pathlib.Path
    paths: tuple[pathlib.Path, ...]
    images: np.ndarray
    labels: np.ndarray

    @property
    def glob(self) -> str:
        return str(self.directory / "*.keras")

    def payloads(self) -> list[bytes]:
        """Each example with `image`, `label` and `id` (`ex-00`, …)."""
        return [
            example(image=x, label=int(y), id=f"ex-{i:02d}")
            for i, (x, y) in enumerate(zip(self.images, self.labels, strict=True))
        ]


def tiny_data(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 4, 4, 1] float32 whose class shows in their mean, and labels [n] int64."""
    rng = np.random.default_rng(11)
    labels = rng.integers(0, CLASSES, n)
    images = rng.normal(size=(n, *SHAPE)) + labels[:, None, None, None]
    return images.astype(np.float32), labels.astype(np.int64)


def build_tiny(softmax: bool, units: int = UNITS) -> Any:
    """The tiny network, not compiled: dense, batch norm and dropout before the last dense layer."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Flatten(),
            layers.Dense(units, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(
                CLASSES, activation="softmax" if softmax else None, bias_initializer="ones"
            ),
        ]
    )


def train_tiny(directory: pathlib.Path, softmax: bool) -> Tiny:
    """Trains it for three epochs with another learning rate each and keeps a checkpoint of each."""
    import keras

    keras.utils.set_random_seed(5)
    images, labels = tiny_data()
    model = build_tiny(softmax)
    model.compile(
        keras.optimizers.SGD(RATES[0], momentum=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax),
    )
    paths = []
    # The names' alphabetical order is not that of training.
    for name, rate in zip(("epoch-1", "epoch-2", "epoch-10"), RATES, strict=True):
        model.optimizer.learning_rate = rate
        model.fit(images, labels, batch_size=10, epochs=1, verbose=0)
        paths.append(directory / f"{name}.keras")
        model.save(paths[-1])
    return Tiny(directory, tuple(paths), images, labels)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny network with logits."""
    return train_tiny(tmp_path_factory.mktemp("logits"), softmax=False)


@pytest.fixture(scope="session")
def tiny_softmax(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny network with a softmax in its last layer."""
    return train_tiny(tmp_path_factory.mktemp("softmax"), softmax=True)


# Command line


class Outcome(NamedTuple):
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def tracin(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process, as the command line does."""
    from pipeline import cli

    def run(command: str, *words: str) -> Outcome:
        capsys.readouterr()
        try:
            status = cli.main([command, *words])
        except SystemExit as error:
            status = int(error.code or 0)
        return Outcome(status, *capsys.readouterr())

    return run
