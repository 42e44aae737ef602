"""Features of a make-believe ResNet-50 on ImageNet, at three checkpoints: early, middle and last.

    python -m benchmarks.imagenet_like        prints the statistics

1000 classes in 100 groups of ten look-alikes; 2048 activations, positive and heavy-tailed
(log-normal with mean 0.45); a linear head on their logarithms. Each checkpoint's class signal and
sharpness are set for the accuracy and confidence that a ResNet-50 might have on test examples;
training examples have a little more signal, as after training. Equal seeds give equal arrays on one
machine; on another the last bits of loss gradients may differ, as NumPy's matrix multiply does.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transforms.core.features import Features

CLASSES, GROUPS, UNITS, CHECKPOINTS = 1000, 100, 2048, 3
LEARNING_RATES = (0.1, 0.01, 0.001)
SIGNAL = (0.088, 0.115, 0.125)  # of the class, in a log-activation, at each checkpoint
SHARPNESS = (0.75, 0.8, 0.85)  # of the logits, at each checkpoint
GAP = 1.12  # signal of training examples over that of test examples
SPREAD = 0.9  # standard deviation of a log-activation
MEAN = 0.45  # of an activation
CHUNK = 5000  # examples of one seed
TEST_SEED = 1000  # and onward; training examples are of the seeds 0, 1, …


@functools.cache
def prototypes() -> np.ndarray:
    """The direction of each class in log-activations, near to those of its group: [1000, 2048]
    float32.
    """
    rng = np.random.default_rng(20260101)
    groups = rng.standard_normal((GROUPS, UNITS)).astype(np.float32)
    own = rng.standard_normal((CLASSES, UNITS)).astype(np.float32)
    return 0.87 * np.repeat(groups, CLASSES // GROUPS, axis=0) + 0.5 * own


def draw(n: int, seed: int, train: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws n examples: labels [n] int64, loss gradients [n, T, C] and activations [n, T, D],
    without a bias's 1, float32.
    """
    labels = np.empty(n, np.int64)
    loss_grads = np.empty((n, CHECKPOINTS, CLASSES), np.float32)
    activations = np.empty((n, CHECKPOINTS, UNITS), np.float32)
    draw_into(labels, loss_grads, activations, seed, train)
    return labels, loss_grads, activations


def draw_into(
    labels: np.ndarray, loss_grads: np.ndarray, activations: np.ndarray, seed: int, train: bool
) -> None:
    """Draws examples into arrays, or views of them, of the shapes that `draw` returns."""
    n = len(labels)
    rng = np.random.default_rng([seed, int(train)])
    labels[:] = rng.integers(0, CLASSES, n)
    noise = rng.standard_normal((n, UNITS), dtype=np.float32)
    # How easy an example is, at all of its checkpoints: some are nearly noise.
    ease = rng.gamma(10.0, 0.1, n).astype(np.float32)[:, None]
    for t in range(CHECKPOINTS):
        signal = SIGNAL[t] * (GAP if train else 1.0)
        wobble = rng.standard_normal((n, UNITS), dtype=np.float32)
        z = (
            np.float32(0.9) * noise
            + np.float32(0.436) * wobble
            + signal * ease * prototypes()[labels]
        )
        activations[:, t] = MEAN * np.exp(SPREAD * z - SPREAD**2 / 2)
        logits = SHARPNESS[t] * signal * (z @ prototypes().T)
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(n), labels] -= 1.0
        loss_grads[:, t] = p


def features(n: int, train: bool = True) -> Features:
    """The features of n examples as stage 1 would have made them, a seed for each 5,000: D = 2049
    with the bias's 1.

    Holds little more than the result, 36.6 KB an example.
    """
    from transforms.core.features import Features
    from transforms.core.ids import id_array
    from transforms.core.summation import norms

    labels = np.empty((n, 1), np.int64)
    loss_grads = np.empty((n, CHECKPOINTS, CLASSES), np.float32)
    activations = np.ones((n, CHECKPOINTS, UNITS + 1), np.float32)
    lengths = {name: np.empty((n, CHECKPOINTS)) for name in ("loss_grads", "activations")}
    predictions = np.empty((n, 1), np.int64)
    probabilities = np.empty(n, np.float32)
    label_probabilities = np.empty((n, CHECKPOINTS), np.float32)
    for start in range(0, n, CHUNK):
        rows = slice(start, min(start + CHUNK, n))
        seed = start // CHUNK + (0 if train else TEST_SEED)
        draw_into(labels[rows, 0], loss_grads[rows], activations[rows, :, :-1], seed, train)
        for t in range(CHECKPOINTS):
            lengths["loss_grads"][rows, t] = norms(loss_grads[rows, t])
            lengths["activations"][rows, t] = norms(activations[rows, t])
        p = probabilities_of(loss_grads[rows], labels[rows, 0])
        predictions[rows, 0] = p[:, -1].argmax(axis=1)
        probabilities[rows] = p[:, -1].max(axis=1)
        label_probabilities[rows] = np.take_along_axis(p, labels[rows, :, None], axis=2)[:, :, 0]
    stem = "train" if train else "test"
    return Features(
        id_array([f"{stem}-{i:06d}".encode() for i in range(n)]),
        labels,
        predictions,
        probabilities,
        label_probabilities,
        loss_grads,
        activations,
        lengths["loss_grads"],
        lengths["activations"],
    )


def probabilities_of(loss_grads: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probabilities [n, T, C] that the loss gradients are of."""
    p = loss_grads.copy()
    p[np.arange(len(labels)), :, labels] += 1
    return p


def main() -> None:
    print(
        f"{'checkpoint':<28} accuracy   top-5   confidence   ‖loss gradient‖, 10 % | 50 % | 90 % "
        "below   ‖activation‖"
    )
    for train in (False, True):
        labels, loss_grads, activations = draw(4000, 7, train)
        p = probabilities_of(loss_grads, labels)
        for t in range(CHECKPOINTS):
            best = np.argsort(-p[:, t], axis=1)[:, :5] == labels[:, None]
            quantiles = np.quantile(np.linalg.norm(loss_grads[:, t], axis=1), [0.1, 0.5, 0.9])
            length = np.linalg.norm(activations[:, t], axis=1)
            print(
                f"{t}, {'training' if train else 'test'} examples".ljust(28),
                f"{best[:, 0].mean():8.3f}{best.any(axis=1).mean():8.3f}"
                f"{p[:, t].max(axis=1).mean():13.3f}   ",
                f"{' | '.join(f'{quantile:.3f}' for quantile in quantiles):<41}{length.mean():.1f} "
                f"± {length.std():.1f}",
            )


if __name__ == "__main__":
    main()
