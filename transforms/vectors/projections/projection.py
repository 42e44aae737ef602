"""Gradients as plain vectors whose dot product is the influence, or an approximation of it.

The vector of an example is `√η_t vec(δ_t ⊗ ĥ_t)`, the checkpoints one after the other: T C D
numbers. The dot product of two such vectors is their influence exactly. A projection keeps fewer
numbers. It is a list of coordinates, each the product of one coordinate of δ_t and one of ĥ_t in
bases of each checkpoint, and perhaps a tensor sketch of the rest. `methods` makes projections.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zipfile
from typing import Any

import numpy as np

from transforms.core.features import Features
from transforms.scoring.influence import self_influence
from transforms.vectors.projections.sketch import Sketch

# Numbers of the largest array that projecting makes beside the vectors, 64 MiB of float64: little
# beside a worker's memory, and many rows even of long vectors.
SCRATCH_NUMBERS = 1 << 23


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The factors of loss gradients that make a plain dot product a score.

    Attributes:
        learning_rates: η of each of T checkpoints.
        unit_length: whether vectors are divided by their length, the √self-influence; an example
            whose gradient is zero stays zero.
    """

    learning_rates: tuple[float, ...]
    unit_length: bool

    def loss_grads(self, features: Features) -> np.ndarray:
        """Returns `√η_t δ_t`, or that over the √self-influence, of n examples: [n, T, C]
        float32.
        """
        factors = np.broadcast_to(
            np.sqrt(np.asarray(self.learning_rates)), (len(features), len(self.learning_rates))
        )
        if self.unit_length:
            lengths = np.sqrt(self_influence(features, self.learning_rates))[:, None]
            factors = np.divide(factors, lengths, out=np.zeros(factors.shape), where=lengths > 0)
        return (features.loss_grads * factors[:, :, None]).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """A linear map of gradients to vectors.

    Attributes:
        method: one of `methods.METHODS`.
        seed: the seed of its random numbers.
        scaling: the factors of loss gradients.
        outputs, units: C and D of its features.
        loss_grad_bases, activation_bases: of each checkpoint [C, p_t] and [D, q_t] float32; None
            for the entries themselves.
        coordinates: of each checkpoint [m_t, 2] int32, columns of both bases; None for all pairs,
            by the first.
        sketch: the sketch of the rest, or None. The bases are orthonormal where there is one.
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
        for loss_grad_basis, activation_basis, pairs in zip(
            self.loss_grad_bases, self.activation_bases, self.coordinates, strict=True
        ):
            kept += (
                _columns(loss_grad_basis, self.outputs) * _columns(activation_basis, self.units)
                if pairs is None
                else len(pairs)
            )
        return kept

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        return self.kept + (self.sketch.size if self.sketch else 0)

    def with_unit_length(self, unit_length: bool) -> Projection:
        """Returns the same projection with vectors that are divided by their length, or are not."""
        return dataclasses.replace(
            self, scaling=dataclasses.replace(self.scaling, unit_length=unit_length)
        )

    def project(self, features: Features, scratch_numbers: int = SCRATCH_NUMBERS) -> np.ndarray:
        """Returns the vectors of n examples: [n, dimensions] float32.

        Arrays of at most about `scratch_numbers` numbers are made beside them.
        """
        vectors = np.empty((len(features), self.dimensions), np.float32)
        step = max(1, scratch_numbers // (self.dimensions + self.outputs + self.units))
        for start in range(0, len(features), step):
            rows = slice(start, start + step)
            self._project_into(features.take(rows), vectors[rows])
        return vectors

    def _project_into(self, features: Features, vectors: np.ndarray) -> None:
        scaled = self.scaling.loss_grads(features)
        first = 0
        spectrum: Any = 0
        kept: Any = 0
        for t, pairs in enumerate(self.coordinates):
            loss_grads, activations = scaled[:, t], features.activations[:, t]
            left = _in_basis(loss_grads, self.loss_grad_bases[t])
            right = _in_basis(activations, self.activation_bases[t])
            width = left.shape[1] * right.shape[1] if pairs is None else len(pairs)
            part = vectors[:, first : first + width]
            if pairs is None:
                part[:] = (left[:, :, None] * right[:, None, :]).reshape(len(vectors), width)
            else:
                np.multiply(left[:, pairs[:, 0]], right[:, pairs[:, 1]], out=part)
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
        for t, pairs in enumerate(self.coordinates):
            left, right = self.loss_grad_bases[t], self.activation_bases[t]
            assert pairs is not None and left is not None and right is not None
            spectrum = self.sketch.spectrum(t, left.T[pairs[:, 0]], right.T[pairs[:, 1]])
            sketched.append(self.sketch.inverse(spectrum).astype(np.float32))
        return sketched

    def to_bytes(self) -> bytes:
        """Returns the projection as a NumPy archive without pickled objects; equal projections give
        equal bytes.
        """
        about = {
            "method": self.method,
            "seed": self.seed,
            "learning_rates": self.scaling.learning_rates,
            "unit": self.scaling.unit_length,
            "outputs": self.outputs,
            "units": self.units,
            "sketch_size": self.sketch.size if self.sketch else 0,
        }
        arrays: dict[str, Any] = {
            "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
        }
        for name in _PER_CHECKPOINT:
            for t, array in enumerate(getattr(self, name)):
                if array is not None:
                    arrays[f"{name}_{t}"] = array
        if self.sketch:
            arrays |= {f"sketch_{name}": getattr(self.sketch, name) for name in _OF_SKETCH}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @staticmethod
    def of_bytes(data: bytes) -> Projection:
        """Returns the projection of such an archive.

        Raises:
            ValueError: it is none.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            about = json.loads(arrays["about"].tobytes())
            loss_grad_bases, activation_bases, coordinates = (
                tuple(arrays.get(f"{name}_{t}") for t in range(len(about["learning_rates"])))
                for name in _PER_CHECKPOINT
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
                Sketch(size, *(arrays[f"sketch_{name}"] for name in _OF_SKETCH)) if size else None,
            )
        except (OSError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"not a projection: {error}") from error


# Names of fields, and of arrays in a stored projection.
_PER_CHECKPOINT = ("loss_grad_bases", "activation_bases", "coordinates")
_OF_SKETCH = ("loss_grad_bins", "loss_grad_signs", "activation_bins", "activation_signs")


def _columns(basis: np.ndarray | None, entries: int) -> int:
    return entries if basis is None else basis.shape[1]


def _in_basis(entries: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    return entries if basis is None else entries @ basis
