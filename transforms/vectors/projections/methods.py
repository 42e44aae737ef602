"""The methods that make a projection.

| method | bases | coordinates | sketch |
|---|---|---|---|
| `exact` | the entries themselves | all | none |
| `random` | random signs | all pairs of a few | none |
| `principal` | eigenvectors of second moments, weighted by the other side | of most energy | none |
| `sketch` | none | none | of the whole |
| `auto` | as `principal` | as `principal` | of the rest, where that finds more in a sample |

`random`, `sketch` and, where it sketches, `auto` are unbiased: over the seeds, the mean of the dot
product is the influence. `principal` is biased: the energy that it drops is missing. Energies are
measured in the bases, not taken from the eigenvalues, as in EK-FAC (George et al. 2018). Random
projections of both factors are those of LoGra (Choe et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transforms.core.features import Features
from transforms.vectors.projections.moments import Measurements
from transforms.vectors.projections.projection import Projection, Scaling
from transforms.vectors.projections.sketch import Sketch

METHODS = ("auto", "principal", "sketch", "random", "exact")
# Methods that need measurements of the training set.
FITTED = ("auto", "principal")

# The shares of a vector's numbers that `auto` tries for the sketch of the rest. It compares them by
# the strongest pairs of 256 of the sample's examples: how many of the 10 strongest of each sign are
# among the first 40 of the approximation, which are the candidates of a search with its default
# `oversampling` of 4.
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SAMPLE_TESTS, _SAMPLE_STRONGEST, _SAMPLE_CANDIDATES = 256, 10, 40


def check_dimensions(
    method: str, dimensions: int, checkpoints: int, outputs: int, units: int
) -> None:
    """Checks that a method can make vectors of so many numbers.

    Raises:
        ValueError: they are more than exact vectors have, or fewer than one for each checkpoint,
            which `random` needs.
    """
    numbers = checkpoints * outputs * units
    if method != "exact" and dimensions > numbers:
        raise ValueError(
            f"{dimensions:,} numbers are more than the {numbers:,} of exact vectors: ask for exact "
            "ones, or for fewer numbers"
        )
    if method == "random" and dimensions < checkpoints:
        raise ValueError(
            f"{dimensions} numbers are too few: random projections need one for each of the "
            f"{checkpoints} checkpoints"
        )


def exact(scaling: Scaling, outputs: int, units: int) -> Projection:
    """Returns the projection that leaves nothing out."""
    entries = (None,) * len(scaling.learning_rates)
    return Projection("exact", 0, scaling, outputs, units, entries, entries, entries)


def random(scaling: Scaling, outputs: int, units: int, dimensions: int, seed: int) -> Projection:
    """Returns random signs for each factor of each checkpoint, at most `dimensions` numbers in all.

    Loss gradients are left alone where they are short; where they are not, both factors become
    equally long.
    """
    checkpoints = len(scaling.learning_rates)
    rng = np.random.default_rng(seed)
    each = dimensions // checkpoints
    kept_outputs = min(outputs, max(1, int(np.sqrt(each))))
    kept_units = min(units, each // kept_outputs)

    def draw(width: int, kept: int) -> np.ndarray | None:
        signs = rng.integers(0, 2, (width, kept)).astype(np.float32) * 2 - 1
        return None if kept == width else signs / np.float32(np.sqrt(kept))

    loss_grad_bases, activation_bases = (
        tuple(draw(width, kept) for _ in range(checkpoints))
        for width, kept in ((outputs, kept_outputs), (units, kept_units))
    )
    return Projection(
        "random",
        seed,
        scaling,
        outputs,
        units,
        loss_grad_bases,
        activation_bases,
        (None,) * checkpoints,
    )


def sketch(scaling: Scaling, outputs: int, units: int, dimensions: int, seed: int) -> Projection:
    """Returns a tensor sketch of the whole vector."""
    bases = [
        (np.zeros((outputs, 0), np.float32), np.zeros((units, 0), np.float32))
        for _ in scaling.learning_rates
    ]
    energies = [np.zeros((0, 0))] * len(bases)
    return with_sketched_rest("sketch", scaling, bases, energies, 0, dimensions, seed)


def with_sketched_rest(
    method: str,
    scaling: Scaling,
    bases: Sequence[tuple[np.ndarray, np.ndarray]],
    energies: Sequence[np.ndarray],
    kept: int,
    size: int,
    seed: int,
) -> Projection:
    """Returns the `kept` coordinates of the most energy, as measured in the bases, with a sketch of
    `size` numbers of the rest; see `Measurements` for the arrays.
    """
    outputs, units = (len(basis) for basis in bases[0])
    flat = np.concatenate([energy.ravel() for energy in energies])
    chosen = np.sort(np.argsort(-flat, kind="stable")[:kept])
    first = 0
    loss_grad_bases, activation_bases, coordinates = [], [], []
    for energy, (loss_grad_basis, activation_basis) in zip(energies, bases, strict=True):
        inside = chosen[(chosen >= first) & (chosen < first + energy.size)] - first
        first += energy.size
        rows, columns = np.unravel_index(inside, energy.shape)
        used, left = np.unique(rows, return_inverse=True)
        loss_grad_bases.append(np.ascontiguousarray(loss_grad_basis[:, used]))
        used, right = np.unique(columns, return_inverse=True)
        activation_bases.append(np.ascontiguousarray(activation_basis[:, used]))
        coordinates.append(np.stack([left, right], axis=1).astype(np.int32))
    rest = (
        Sketch.draw(np.random.default_rng(seed), size, len(bases), outputs, units) if size else None
    )
    return Projection(
        method,
        seed,
        scaling,
        outputs,
        units,
        tuple(loss_grad_bases),
        tuple(activation_bases),
        tuple(coordinates),
        rest,
    )


def fit(
    method: str, scaling: Scaling, measurements: Measurements, dimensions: int, seed: int
) -> Projection:
    """Returns a projection of `FITTED` onto the coordinates of the most energy.

    For `auto`, the share of the numbers that is sketched is the one that finds most of the sample's
    strongest pairs; the smallest of equals.
    """
    bases, energies = measurements.bases, measurements.energies
    if method == "principal":
        return with_sketched_rest(method, scaling, bases, energies, dimensions, 0, seed)
    best: tuple[float, Projection] | None = None
    for share in _SHARES:
        size = round(share * dimensions)
        projection = with_sketched_rest(
            method, scaling, bases, energies, dimensions - size, size, seed
        )
        recall = recall_in_sample(projection, measurements.sample)
        if best is None or recall > best[0]:
            best = recall, projection
    assert best
    return best[1]


def recall_in_sample(projection: Projection, sample: Features) -> float:
    """Returns the part of a sample's strongest pairs that a projection's vectors rank near the top,
    over both signs; 1 where there are none.
    """
    tests = np.linspace(0, len(sample) - 1, min(len(sample), _SAMPLE_TESTS)).astype(np.int64)
    scaled = projection.scaling.loss_grads(sample)
    scores = np.zeros((len(tests), len(sample)), np.float32)
    for t in range(scaled.shape[1]):
        scores += (scaled[tests, t] @ scaled[:, t].T) * (
            sample.activations[tests, t] @ sample.activations[:, t].T
        )
    vectors = projection.project(sample)
    products = vectors[tests] @ vectors.T
    matches = pairs = 0
    for sign in (1, -1):
        for i, test in enumerate(tests):
            others = np.delete(np.arange(len(sample)), test)
            strongest = np.argsort(-sign * scores[i, others], kind="stable")[:_SAMPLE_STRONGEST]
            strongest = strongest[sign * scores[i, others[strongest]] > 0]
            nearest = np.argsort(-sign * products[i, others], kind="stable")[:_SAMPLE_CANDIDATES]
            matches += len(np.intersect1d(strongest, nearest))
            pairs += len(strongest)
    return matches / pairs if pairs else 1.0
