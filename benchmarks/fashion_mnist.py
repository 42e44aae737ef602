"""Fashion-MNIST as a workload: its images as TFRecords, and checkpoints of a small network trained
on them.

    python -m benchmarks.fashion_mnist DIR        prepares DIR, unless it is there already

The images come from Debian's package `dataset-fashion-mnist`; nothing is downloaded.
"""

from __future__ import annotations

import gzip
import pathlib
import sys

import numpy as np

SOURCE = pathlib.Path("/usr/share/datasets/fashion-mnist")
MISSING = f"Fashion-MNIST is not at {SOURCE}: install Debian's package dataset-fashion-mnist"
CHECKPOINTS = 6
TRAIN_FILES, TEST_FILES = 8, 2


def available() -> bool:
    """Whether the data set is on this machine."""
    return (SOURCE / "train-images-idx3-ubyte.gz").exists()


def load(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] uint8 and labels [n] uint8 of `train` or `t10k`."""
    images = gzip.decompress((SOURCE / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((SOURCE / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(
        labels, np.uint8, offset=8
    )


def write_examples(
    directory: pathlib.Path, stem: str, images: np.ndarray, labels: np.ndarray, shards: int
) -> None:
    """Writes images scaled to 0..1 and labels as `shards` TFRecord files of tf.train.Example."""
    import tensorflow as tf

    directory.mkdir(parents=True, exist_ok=True)
    for shard, rows in enumerate(np.array_split(np.arange(len(images)), shards)):
        with tf.io.TFRecordWriter(
            str(directory / f"{stem}-{shard:05d}-of-{shards:05d}.tfrecord")
        ) as writer:
            for i in rows:
                pixels = (images[i].astype(np.float32) / 255).ravel()
                feature = {
                    "image": tf.train.Feature(float_list=tf.train.FloatList(value=pixels)),
                    "label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[int(labels[i])])
                    ),
                    "id": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[f"{stem}-{i:05d}".encode()])
                    ),
                }
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=feature)
                    ).SerializeToString()
                )


def train(
    directory: pathlib.Path, images: np.ndarray, labels: np.ndarray, epochs: int = CHECKPOINTS
) -> None:
    """Trains a small convolutional network (10 classes, 128 units before the last layer) and keeps
    a checkpoint of each epoch.
    """
    import keras

    directory.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.1, len(images) // 128, 0.8), momentum=0.9
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    keep = keras.callbacks.ModelCheckpoint(str(directory / "epoch-{epoch}.keras"))
    model.fit(
        images[..., None].astype(np.float32) / 255,
        labels,
        batch_size=128,
        epochs=epochs,
        callbacks=[keep],
        verbose=2,
    )


def prepare(directory: pathlib.Path) -> pathlib.Path:
    """Writes examples and checkpoints below `directory`, unless a run before has; returns it.

    Raises:
        FileNotFoundError: the data set is not on this machine.
    """
    if not available():
        raise FileNotFoundError(MISSING)
    done = directory / "prepared"
    if not done.exists():
        images, labels = load("train")
        write_examples(directory / "examples", "train", images, labels, TRAIN_FILES)
        train(directory / "checkpoints", images, labels)
        images, labels = load("t10k")
        write_examples(directory / "examples", "test", images, labels, TEST_FILES)
        done.touch()
    return directory


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.fashion_mnist DIR")
    try:
        print(prepare(pathlib.Path(sys.argv[1])))
    except FileNotFoundError as error:
        sys.exit(str(error))
