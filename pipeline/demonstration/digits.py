"""The demo's workload: scikit-learn's handwritten digits, some labels made wrong on purpose, and a
small network trained on them.
"""

from __future__ import annotations

import dataclasses
import os

import keras
import numpy as np
import tensorflow as tf

from transforms.storage import filesystems, globs
from transforms.storage.records import tfrecords

TRAIN_DIGITS = 1397  # of 1,797; the other 400 are for testing
WRONG_FRACTION = 0.1
EPOCHS = 12
CHECKPOINTS = "digits-*.keras"
_SEED = 1
_EPOCHS_PER_CHECKPOINT = 2
_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
    """n digits.

    Attributes:
        ids: [n] unique ids, such as `train-0012`.
        images: [n, 8, 8] float32, from 0 (paper) to 1 (ink).
        labels: [n] int64, the labels that the model learns.
        truth: [n] int64, the true digits.
    """

    ids: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    truth: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def planted(self) -> np.ndarray:
        """Which labels were made wrong: [n] bool."""
        return self.labels != self.truth


def load() -> tuple[Digits, Digits]:
    """Returns the training digits, of which a tenth are labelled wrong, and the test digits; the
    same ones every time.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(len(source.target))
    images = (source.images[order] / 16).astype(np.float32)
    truth = source.target[order].astype(np.int64)
    train, test = slice(TRAIN_DIGITS), slice(TRAIN_DIGITS, None)
    return (
        Digits(
            _ids("train", images[train]), images[train], mislabel(truth[train], rng), truth[train]
        ),
        Digits(_ids("test", images[test]), images[test], truth[test], truth[test]),
    )


def _ids(part: str, images: np.ndarray) -> tuple[str, ...]:
    return tuple(f"{part}-{i:04d}" for i in range(len(images)))


def mislabel(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns labels [n] of which `WRONG_FRACTION` are wrong, each equally likely to be any of the
    nine other digits.
    """
    labels = truth.copy()
    wrong = rng.choice(len(labels), round(WRONG_FRACTION * len(labels)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return labels


def write_examples(directory: str, name: str, digits: Digits) -> None:
    """Writes digits as a TFRecord file of `tf.train.Example` with `image`, `label` and `id`."""
    frames = []
    for example_id, image, label in zip(digits.ids, digits.images, digits.labels, strict=True):
        feature = {
            "image": tf.train.Feature(float_list=tf.train.FloatList(value=image.ravel())),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example_id.encode()])),
        }
        frames.append(
            tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(
                deterministic=True
            )
        )
    filesystems.write(directory, name, tfrecords.join_frames(frames), len(digits))


def train(directory: str, digits: Digits) -> int:
    """Trains a network of 64 hidden units on the given labels; returns how many checkpoints it kept
    in `directory`.

    The checkpoints are spread over the epochs: a wrong label stands out while the network still
    disagrees with it, not once it is learnt.
    """
    os.makedirs(directory, exist_ok=True)
    # Another version of the demo may have left checkpoints that the glob would take for this run's.
    filesystems.delete(directory, globs.names_matching(directory, [CHECKPOINTS]))
    keras.utils.set_random_seed(_SEED)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, len(digits) // _BATCH_SIZE, 0.9)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for epoch in range(0, EPOCHS, _EPOCHS_PER_CHECKPOINT):
        stop = epoch + _EPOCHS_PER_CHECKPOINT
        model.fit(
            digits.images,
            digits.labels,
            batch_size=_BATCH_SIZE,
            initial_epoch=epoch,
            epochs=stop,
            verbose=0,
        )
        model.save(os.path.join(directory, f"digits-{stop:02d}.keras"))
    return EPOCHS // _EPOCHS_PER_CHECKPOINT
