"""Gradients as plain vectors whose dot product is the influence, or comes near to it.

The vector of an example is `√η_t vec(δ_t ⊗ ĥ_t)`, the checkpoints one after the other: T C D
numbers, and the dot product of two of them is their influence exactly. A projection keeps fewer. It
is a list of coordinates, each the product of one coordinate of δ_t and one of ĥ_t in some bases of
each checkpoint, and perhaps a tensor sketch of what these leave out:

| method | bases | coordinates | sketch |
|---|---|---|---|
| `exact` | the entries themselves | all | none |
| `random` | random signs | all pairs of a few | none |
| `principal` | eigenvectors of second moments, weighted by the other side | of all checkpoints those with the most energy | none |
| `sketch` | – | none | of the whole |
| `auto` | as `principal` | as `principal` | of the rest, where that finds more in a sample |

`random`, `sketch` and, where it sketches, `auto` are unbiased: over the seeds, the mean of the dot
product is the influence. `principal` is not: what it drops is missing. Energies are measured in the
bases, not taken from the eigenvalues, as in EK-FAC (George et al. 2018); random projections of both
factors are those of LoGra (Choe et al. 2024); tensor sketches are of Pham and Pagh (2013).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from transforms.core.features import Features
from transforms.scoring.influence import self_influence

METHODS = ("auto", "principal", "sketch", "random", "exact")
FITTED = ("auto", "principal")

# What of a vector's numbers `auto` tries for the sketch of the rest, and what it compares them by:
# for so many of the sample's examples, how many of the strongest of each sign are among the first
# places of the approximation.
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SAMPLE = 2048
_SAMPLE_TESTS, _SAMPLE_STRONGEST, _SAMPLE_PLACES = 256, 10, 40

# Numbers that are made at once, of all arrays that are as long as the examples.
_SCRATCH = 1 << 23


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What is multiplied into the loss gradients, so that a plain dot product is a score.

    Attributes:
        learning_rates: η of each of T checkpoints.
        unit: whether vectors are divided by their length, the √self-influence; an example whose
            gradient is zero stays zero.
    """

    learning_rates: tuple[float, ...]
    unit: bool

    def loss_grads(self, features: Features) -> np.ndarray:
        """`√η_t δ_t`, or that over the √self-influence, of n examples: [n, T, C] float32."""
        factors = np.broadcast_to(
            np.sqrt(np.asarray(self.learning_rates)), (len(features), len(self.learning_rates))
        )
        if self.unit:
            lengths = np.sqrt(self_influence(features, self.learning_rates))[:, None]
            factors = np.divide(factors, lengths, out=np.zeros(factors.shape), where=lengths > 0)
        return (features.loss_grads * factors[:, :, None]).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """Where a tensor sketch of `size` numbers adds each entry, and with which sign.

    Attributes:
        size: how many numbers it has.
        loss_grad_bins, loss_grad_signs: [T, C] int32 and float32.
        activation_bins, activation_signs: [T, D] likewise.
    """

    size: int
    loss_grad_bins: np.ndarray
    loss_grad_signs: np.ndarray
    activation_bins: np.ndarray
    activation_signs: np.ndarray

    @staticmethod
    def draw(
        rng: np.random.Generator, size: int, checkpoints: int, outputs: int, units: int
    ) -> Sketch:
        """A sketch by random hashes, those of the checkpoints independent, so that one sketch can
        be of the sum of all.
        """

        def bins(width: int) -> np.ndarray:
            return rng.integers(0, size, (checkpoints, width), dtype=np.int32)

        def signs(width: int) -> np.ndarray:
            return rng.integers(0, 2, (checkpoints, width)).astype(np.float32) * 2 - 1

        return Sketch(size, bins(outputs), signs(outputs), bins(units), signs(units))

    def spectrum(self, t: int, loss_grads: np.ndarray, activations: np.ndarray) -> np.ndarray:
        """The Fourier transform of the sketches of n outer products at checkpoint t, of [n, C] and
        [n, D]: [n, size / 2 + 1] complex.
        """
        return np.fft.rfft(
            _count_sketch(loss_grads, self.loss_grad_bins[t], self.loss_grad_signs[t], self.size)
        ) * np.fft.rfft(
            _count_sketch(activations, self.activation_bins[t], self.activation_signs[t], self.size)
        )

    def inverse(self, spectrum: np.ndarray) -> np.ndarray:
        """The sketches [n, size] float64 whose transform it is."""
        return np.fft.irfft(spectrum, self.size)


def _count_sketch(
    entries: np.ndarray, bins: np.ndarray, signs: np.ndarray, size: int
) -> np.ndarray:
    """Adds the signed entries [n, w] up by bin: [n, size] float64."""
    order = np.argsort(bins, kind="stable")
    used, starts = np.unique(bins[order], return_index=True)
    sums = np.zeros((len(entries), size))
    sums[:, used] = np.add.reduceat(
        entries[:, order].astype(np.float64) * signs[order], starts, axis=1
    )
    return sums


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """What makes vectors of features.

    Attributes:
        method: one of `METHODS`.
        seed: what random numbers came from.
        scaling: what is multiplied in.
        outputs, units: C and D of the features that it is for.
        loss_grad_bases, activation_bases: of each checkpoint [C, p_t] and [D, q_t] float32; None
            for the entries themselves.
        coordinates: of each checkpoint [m_t, 2] int32, columns of both bases; None for all pairs,
            by the first.
        sketch: of what the coordinates leave out, or None. The bases are orthonormal where there is
            one.
    """

    method: str
    seed: int
    scaling: Scaling
    outputs: int
    units: int
    loss_grad_bases: tuple[np.ndarray | None, ...]
    activation_bases: tuple[np.ndarray | None, ...]
    coordinates: tuple[np.ndarray | None, ...]
    sketch: Sketch | None = None

    @property
    def kept(self) -> int:
        """How many numbers of a vector are coordinates."""
        kept = 0
        for one, other, picks in zip(
            self.loss_grad_bases, self.activation_bases, self.coordinates, strict=True
        ):
            kept += (
                _columns(one, self.outputs) * _columns(other, self.units)
                if picks is None
                else len(picks)
            )
        return kept

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        return self.kept + (self.sketch.size if self.sketch else 0)

    def with_unit(self, unit: bool) -> Projection:
        """The same projection of vectors that are divided by their length, or are not."""
        return dataclasses.replace(self, scaling=dataclasses.replace(self.scaling, unit=unit))

    def project(self, features: Features) -> np.ndarray:
        """The vectors of n examples: [n, dimensions] float32."""
        vectors = np.empty((len(features), self.dimensions), np.float32)
        step = max(1, _SCRATCH // (self.dimensions + self.outputs + self.units))
        for start in range(0, len(features), step):
            rows = slice(start, start + step)
            self._project_into(features.take(rows), vectors[rows])
        return vectors

    def _project_into(self, features: Features, vectors: np.ndarray) -> None:
        scaled = self.scaling.loss_grads(features)
        first = 0
        spectrum: Any = 0
        kept: Any = 0
        for t, picks in enumerate(self.coordinates):
            loss_grads, activations = scaled[:, t], features.activations[:, t]
            ones = _in_basis(loss_grads, self.loss_grad_bases[t])
            others = _in_basis(activations, self.activation_bases[t])
            width = ones.shape[1] * others.shape[1] if picks is None else len(picks)
            part = vectors[:, first : first + width]
            if picks is None:
                part[:] = (ones[:, :, None] * others[:, None, :]).reshape(len(vectors), width)
            else:
                np.multiply(ones[:, picks[:, 0]], others[:, picks[:, 1]], out=part)
            if self.sketch:
                spectrum = spectrum + self.sketch.spectrum(t, loss_grads, activations)
                if width:
                    kept = kept + part @ self._sketched_coordinates[t]
            first += width
        if self.sketch:
            vectors[:, first:] = self.sketch.inverse(spectrum) - kept

    @functools.cached_property
    def _sketched_coordinates(self) -> list[np.ndarray]:
        """The sketch of each kept coordinate's direction, by checkpoint: [m_t, size]. Sketches are
        linear, so they can be subtracted.
        """
        assert self.sketch
        sketched = []
        for t, picks in enumerate(self.coordinates):
            one, other = self.loss_grad_bases[t], self.activation_bases[t]
            assert picks is not None and one is not None and other is not None
            spectrum = self.sketch.spectrum(t, one.T[picks[:, 0]], other.T[picks[:, 1]])
            sketched.append(self.sketch.inverse(spectrum).astype(np.float32))
        return sketched

    def to_bytes(self) -> bytes:
        """The projection as a NumPy archive without pickled objects; equal ones give equal
        bytes.
        """
        about = {
            "method": self.method,
            "seed": self.seed,
            "learning_rates": self.scaling.learning_rates,
            "unit": self.scaling.unit,
            "outputs": self.outputs,
            "units": self.units,
            "sketch_size": self.sketch.size if self.sketch else 0,
        }
        arrays: dict[str, Any] = {
            "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
        }
        for name in _LISTED:
            for t, array in enumerate(getattr(self, name)):
                if array is not None:
                    arrays[f"{name}_{t}"] = array
        if self.sketch:
            arrays |= {f"sketch_{name}": getattr(self.sketch, name) for name in _SKETCHED}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @staticmethod
    def of_bytes(data: bytes) -> Projection:
        """The projection of such an archive.

        Raises:
            ValueError: it is none.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            about = json.loads(arrays["about"].tobytes())
            loss_grad_bases, activation_bases, coordinates = (
                tuple(arrays.get(f"{name}_{t}") for t in range(len(about["learning_rates"])))
                for name in _LISTED
            )
            size = about["sketch_size"]
            return Projection(
                about["method"],
                about["seed"],
                Scaling(tuple(about["learning_rates"]), about["unit"]),
                about["outputs"],
                about["units"],
                loss_grad_bases,
                activation_bases,
                coordinates,
                Sketch(size, *(arrays[f"sketch_{name}"] for name in _SKETCHED)) if size else None,
            )
        except (OSError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"not a projection: {error}") from error


_LISTED = ("loss_grad_bases", "activation_bases", "coordinates")
_SKETCHED = ("loss_grad_bins", "loss_grad_signs", "activation_bins", "activation_signs")


def _columns(basis: np.ndarray | None, entries: int) -> int:
    return entries if basis is None else basis.shape[1]


def _in_basis(entries: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    return entries if basis is None else entries @ basis


def check_dimensions(
    method: str, dimensions: int, checkpoints: int, outputs: int, units: int
) -> None:
    """Makes sure that a method can make vectors of so many numbers.

    Raises:
        ValueError: they are more than exact vectors have, or fewer than one for each checkpoint,
            where it needs that.
    """
    exact = checkpoints * outputs * units
    if method != "exact" and dimensions > exact:
        raise ValueError(
            f"{dimensions:,} numbers are more than the {exact:,} of exact vectors: ask for exact "
            "ones, or for fewer numbers"
        )
    if method == "random" and dimensions < checkpoints:
        raise ValueError(
            f"{dimensions} numbers are too few: random projections need one for each of the "
            f"{checkpoints} checkpoints"
        )


def exact(scaling: Scaling, outputs: int, units: int) -> Projection:
    """The projection that leaves nothing out."""
    nothing = (None,) * len(scaling.learning_rates)
    return Projection("exact", 0, scaling, outputs, units, nothing, nothing, nothing)


def random(scaling: Scaling, outputs: int, units: int, dimensions: int, seed: int) -> Projection:
    """Random signs for each factor of each checkpoint, so many that at most `dimensions` numbers
    result.

    Loss gradients are left alone where they are short, and both are made equally long where they
    are not.
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
    """A tensor sketch of the whole vector."""
    nothing = [
        (np.zeros((outputs, 0), np.float32), np.zeros((units, 0), np.float32))
        for _ in scaling.learning_rates
    ]
    return _with_rest(
        "sketch", scaling, nothing, [np.zeros((0, 0))] * len(nothing), 0, dimensions, seed
    )


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoments:
    """Sums over examples, of one checkpoint; they are added up with `+`.

    Attributes:
        loss_grads: `Σ ‖ĥ‖² δ δᵀ`, [C, C] float64, δ scaled.
        activations: `Σ ‖δ‖² ĥ ĥᵀ`, [D, D] float64.
    """

    loss_grads: np.ndarray
    activations: np.ndarray

    @staticmethod
    def of(loss_grads: np.ndarray, activations: np.ndarray) -> SecondMoments:
        """Of n examples: scaled [n, C] and [n, D]."""
        lengths, other_lengths = (
            np.sqrt(np.square(factor, dtype=np.float64).sum(axis=1))[:, None]
            for factor in (loss_grads, activations)
        )
        one, other = loss_grads * other_lengths, activations * lengths
        return SecondMoments(_product(one, one), _product(other, other))

    def __add__(self, more: SecondMoments) -> SecondMoments:
        return SecondMoments(self.loss_grads + more.loss_grads, self.activations + more.activations)

    def bases(self) -> tuple[np.ndarray, np.ndarray]:
        """The eigenvectors of both, as columns, those of the largest eigenvalues first: [C, C] and
        [D, D] float32.

        Of each column the largest entry is positive, so that signs do not depend on the library.
        """
        return _eigenvectors(self.loss_grads), _eigenvectors(self.activations)


def _eigenvectors(moments: np.ndarray) -> np.ndarray:
    vectors = np.linalg.eigh(moments)[1][:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return (vectors * np.where(largest < 0, -1.0, 1.0)).astype(np.float32)


def energies(
    loss_grads: np.ndarray, activations: np.ndarray, bases: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """The sum over n examples, scaled [n, C] and [n, D], of each squared coordinate in the bases:
    [C, D] float64.
    """
    ones, others = (
        np.square(factor @ basis, dtype=np.float64)
        for factor, basis in zip((loss_grads, activations), bases, strict=True)
    )
    return _product(ones, others)


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum over n examples of the outer products of rows [n, a] and [n, b]: [a, b] float64.

    Multiplied in float32, which is twice as fast, after scaling that keeps it in range. Bases and
    coordinates are a choice that rounding may sway; what is projected onto them is not rounded by
    it.
    """
    scales = [float(np.abs(side).max(initial=0)) or 1.0 for side in (one, other)]
    left, right = (
        (side / scale).astype(np.float32) for side, scale in zip((one, other), scales, strict=True)
    )
    return (left.T @ right).astype(np.float64) * (scales[0] * scales[1])


def _with_rest(
    method: str,
    scaling: Scaling,
    bases: Sequence[tuple[np.ndarray, np.ndarray]],
    measured: Sequence[np.ndarray],
    kept: int,
    size: int,
    seed: int,
) -> Projection:
    """The `kept` coordinates of the most energy, as `measured` in the bases, and a sketch of `size`
    numbers of the rest.
    """
    outputs, units = (len(basis) for basis in bases[0])
    flat = np.concatenate([energy.ravel() for energy in measured])
    chosen = np.sort(np.argsort(-flat, kind="stable")[:kept])
    first = 0
    loss_grad_bases, activation_bases, coordinates = [], [], []
    for energy, (one, other) in zip(measured, bases, strict=True):
        mine = chosen[(chosen >= first) & (chosen < first + energy.size)] - first
        first += energy.size
        rows, columns = np.unravel_index(mine, energy.shape)
        used, one_places = np.unique(rows, return_inverse=True)
        loss_grad_bases.append(np.ascontiguousarray(one[:, used]))
        used, other_places = np.unique(columns, return_inverse=True)
        activation_bases.append(np.ascontiguousarray(other[:, used]))
        coordinates.append(np.stack([one_places, other_places], axis=1).astype(np.int32))
    drawn = (
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
        drawn,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Measurements:
    """What `fit` needs to know of features.

    Attributes:
        bases: of each checkpoint, [C, C] and [D, D] float32.
        energies: in these, of each checkpoint [C, D] float64.
        sample: the strongest records; see `Strongest`.
    """

    bases: list[tuple[np.ndarray, np.ndarray]]
    energies: list[np.ndarray]
    sample: Features

    @staticmethod
    def of(features: Features, scaling: Scaling) -> Measurements:
        """Of features at hand: in one piece what `fitting` measures in a set of files."""
        scaled = scaling.loss_grads(features)
        bases = [
            SecondMoments.of(scaled[:, t], features.activations[:, t]).bases()
            for t in range(scaled.shape[1])
        ]
        measured = [
            energies(scaled[:, t], features.activations[:, t], pair) for t, pair in enumerate(bases)
        ]
        return Measurements(
            bases, measured, features.take(Strongest.of(features, scaling.learning_rates, 0).rows)
        )


def fit(
    method: str, scaling: Scaling, known: Measurements, dimensions: int, seed: int
) -> Projection:
    """A projection of `FITTED` onto the coordinates of the most energy.

    For `auto`, the share of the numbers that is sketched is that by which most of the sample's
    strongest pairs are found; the smallest of equals.
    """
    if method == "principal":
        return _with_rest(method, scaling, known.bases, known.energies, dimensions, 0, seed)
    best: tuple[float, Projection] | None = None
    for share in _SHARES:
        size = round(share * dimensions)
        made = _with_rest(
            method, scaling, known.bases, known.energies, dimensions - size, size, seed
        )
        found = found_in_sample(made, known.sample)
        if best is None or found > best[0]:
            best = found, made
    assert best
    return best[1]


def found_in_sample(projection: Projection, sample: Features) -> float:
    """What part of the strongest pairs of a sample is near the top by a projection's vectors, over
    both signs; 1 where there are none.
    """
    tests = np.linspace(0, len(sample) - 1, min(len(sample), _SAMPLE_TESTS)).astype(np.int64)
    scaled = projection.scaling.loss_grads(sample)
    scores = np.zeros((len(tests), len(sample)), np.float32)
    for t in range(scaled.shape[1]):
        scores += (scaled[tests, t] @ scaled[:, t].T) * (
            sample.activations[tests, t] @ sample.activations[:, t].T
        )
    vectors = projection.project(sample)
    near = vectors[tests] @ vectors.T
    found = wanted = 0
    for sign in (1, -1):
        for i, test in enumerate(tests):
            others = np.delete(np.arange(len(sample)), test)
            strongest = np.argsort(-sign * scores[i, others], kind="stable")[:_SAMPLE_STRONGEST]
            strongest = strongest[sign * scores[i, others[strongest]] > 0]
            places = np.argsort(-sign * near[i, others], kind="stable")[:_SAMPLE_PLACES]
            found += len(np.intersect1d(strongest, places))
            wanted += len(strongest)
    return found / wanted if wanted else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Strongest:
    """The rows of a set whose self-influence is highest, at most `SAMPLE`: what `fit` takes its
    sample of. They are added up with `+`.

    The strongest pairs are nearly all among them, so that a sample of others would tell little of
    how these are found.

    Attributes:
        rows: [m] int64, row numbers in the set.
        strengths: [m] float64.
    """

    rows: np.ndarray
    strengths: np.ndarray

    @staticmethod
    def of(features: Features, learning_rates: Sequence[float], first: int) -> Strongest:
        """Of examples that follow each other from row `first` on."""
        return Strongest(
            np.arange(first, first + len(features)), self_influence(features, learning_rates)
        ) + Strongest(np.zeros(0, np.int64), np.zeros(0))

    def __add__(self, more: Strongest) -> Strongest:
        rows, strengths = (
            np.concatenate([self.rows, more.rows]),
            np.concatenate([self.strengths, more.strengths]),
        )
        kept = np.lexsort((rows, -strengths))[:SAMPLE]
        kept = kept[np.argsort(rows[kept])]
        return Strongest(rows[kept], strengths[kept])
