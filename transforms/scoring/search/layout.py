"""How examples are laid out for the search: factors, sketches, terms and column groups."""

from __future__ import annotations

import functools

import numpy as np

from transforms.core.features import Features
from transforms.scoring.error_bounds import sketch_error
from transforms.scoring.influence import Scoring, self_influence
from transforms.scoring.kernels import pairs, prepare
from transforms.scoring.kernels.layout import (
    STRONGEST,
    SUPERGROUP_SIZE,
    ColumnGroups,
    Factors,
    Terms,
)
from transforms.scoring.kernels.register_tiles import SKETCH, SKETCH_COLUMNS
from transforms.scoring.kernels.simd import GROUP_SIZE
from transforms.scoring.search.threads import threads
from transforms.scoring.search.tuning import DEFAULT_TUNING, SearchTuning

# Rows of a sample that are multiplied at once, if that is a small product. OpenBLAS shares out
# products of more terms than the second among threads, which then wait for others, busily, and take
# tens of milliseconds from ours.
_SMALL, _SHARED_PRODUCT = 64, 1 << 18


def sketch_directions(train: Features, tuning: SearchTuning = DEFAULT_TUNING) -> np.ndarray:
    """Finds orthonormal directions in which the activations of strong training examples lie: [T, D,
    SKETCH_COLUMNS] float32, filled up by zeros.

    Subspace iteration on a sample finds them; any are valid, better ones leave less outside. There
    are none, [T, D, 0], where too much would be outside.
    """
    _, _, units = train.activations.shape
    if units <= 2 * SKETCH:
        return no_directions(train)
    size = min(len(train), tuning.sketch_sample)
    step = _SMALL if size >= _SMALL and units * SKETCH * _SMALL < _SHARED_PRODUCT else size
    rows = np.linspace(0, len(train) - 1, size // step * step).astype(np.int64).reshape(-1, step)
    directions = np.zeros((*train.activations.shape[1:], SKETCH_COLUMNS), np.float32)
    outside = []
    for t in range(len(directions)):
        lengths = train.activation_norms[rows, t]
        sample = train.activations[rows, t] * inverse(lengths)[..., None]
        strength = train.loss_grad_norms[rows, t] * lengths
        weighted = sample * (strength / max(strength.max(), 1e-300))[..., None]
        basis = np.random.default_rng(0).standard_normal((units, SKETCH))
        for _ in range(tuning.sketch_iterations):
            basis = np.linalg.qr((weighted.swapaxes(1, 2) @ (weighted @ basis)).sum(0))[0]
        directions[t, :, :SKETCH] = basis
        outside.append(np.median(1 - np.square(sample @ basis).sum(-1)))
    return directions if np.mean(outside) < tuning.sketch_rest else no_directions(train)


def no_directions(features: Features) -> np.ndarray:
    """Returns the directions of no sketch: [T, D, 0] float32."""
    return np.empty((*features.activations.shape[1:], 0), np.float32)


def inverse(lengths: np.ndarray) -> np.ndarray:
    """Returns 1 over lengths, or 0 over 0."""
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def factors_of(
    features: Features, scoring: Scoring, divides: bool, directions: np.ndarray
) -> Factors:
    """Returns the factors of examples' scores.

    `divides` says whether normalisation divides by their √self-influence; `directions` [T, D, …]
    are those of sketches.
    """
    loss_grads = np.ascontiguousarray(features.loss_grads, np.float32)
    activations = np.ascontiguousarray(features.activations, np.float32)
    lengths = np.sqrt(np.asarray(scoring.learning_rates)) * features.activation_norms
    negatives, rests = np.zeros((2, *lengths.shape))
    _, units, sketched = directions.shape
    sketches = np.empty((*lengths.shape, SKETCH if sketched else 0), np.float32)
    norm = np.sqrt(self_influence(features, scoring.learning_rates))
    error = sketch_error(SKETCH, units)
    threads().share(
        len(features),
        lambda first, last: prepare.sketch_activations(
            activations,
            features.activation_norms,
            directions,
            error,
            first,
            last,
            negatives,
            sketches,
            rests,
        ),
    )
    return Factors(
        loss_grads,
        activations,
        lengths,
        negatives,
        sketches,
        rests,
        lengths * features.loss_grad_norms,
        norm,
        norm if divides else np.ones(len(norm)),
    )


def score_pairs(
    test: Features, train: Features, tests: np.ndarray, trains: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """Returns the `canonical_scores` of P pairs, rows `tests` and `trains` [P], bit for bit, but
    compiled and on all cores: [P] float64.
    """
    nothing = no_directions(test)
    sides = (
        factors_of(test, scoring, scoring.divides_test, nothing),
        factors_of(train, scoring, scoring.divides_train, nothing),
    )
    rates = np.asarray(scoring.learning_rates, np.float64)
    scores = np.empty(len(tests))

    def work(first: int, last: int) -> None:
        scores[first:last] = pairs.canonical_scores(
            *sides, rates, tests[first:last], trains[first:last]
        )

    threads().share(len(tests), work)
    return scores


def scaled_rows(test: Factors, features: Features, rows: np.ndarray) -> list[np.ndarray]:
    """Returns the loss gradients over N and the activations of length 1 of some test rows, as
    `products.search_products` multiplies them.
    """
    scaled = []
    for vectors, factors in (
        (test.loss_grads, test.lengths * inverse(test.norm)[:, None]),
        (test.activations, inverse(features.activation_norms)),
    ):
        part = np.empty((len(rows), *vectors.shape[1:]), np.float32)
        scale = functools.partial(
            prepare.scale_vectors, part, vectors=vectors, factors=factors, rows=rows
        )
        threads().share(len(rows), scale)
        scaled.append(part)
    return scaled


def find_terms(factors: Factors, left_out_norm: float) -> Terms:
    """Finds the terms of test examples; the entries left out have a norm of at most `left_out_norm`
    N together.
    """
    norms = factors.norms * inverse(factors.norm)[:, None]
    rounded_up = [
        (array * (1 + 1e-6)).astype(np.float32)
        for array in (norms, factors.negatives, factors.rests)
    ]
    parts = threads().share(
        len(norms),
        lambda first, last: prepare.find_terms(
            factors.loss_grads, factors.lengths, factors.norm, left_out_norm, first, last
        ),
    )
    starts, outputs, values, rest = zip(*parts, strict=True)
    before = np.cumsum([0, *(len(part) for part in outputs[:-1])])
    offsets = np.concatenate([part + start for part, start in zip(starts, before, strict=True)])
    entries = (np.concatenate(arrays) for arrays in (outputs, values, rest))
    return Terms(offsets, *entries, *rounded_up)


class TestLayout:
    """Test examples, laid out.

    Attributes:
        features: the examples.
        directions: those of sketches, [T, D, …].
        factors: of their scores.
    """

    __test__ = False  # no test of pytest's, whatever its name

    def __init__(
        self,
        features: Features,
        scoring: Scoring,
        directions: np.ndarray,
        left_out_norm: float = DEFAULT_TUNING.left_out_norm,
    ) -> None:
        self.features, self.directions = features, directions
        self.factors = factors_of(features, scoring, scoring.divides_test, directions)
        self._left_out_norm = left_out_norm

    @functools.cached_property
    def terms(self) -> Terms:
        """The large entries of their loss gradients."""
        return find_terms(self.factors, self._left_out_norm)

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        """The outputs in which they are strongest; see `prepare.strongest_outputs`."""
        strongest = np.empty((len(self.factors.norm), STRONGEST), np.int64)
        # Looked up here: threads that made them would wait for each other.
        terms, outputs = self.terms, self.factors.loss_grads.shape[2]
        threads().share(
            len(strongest),
            lambda first, last: prepare.strongest_outputs(terms, outputs, first, last, strongest),
        )
        return strongest

    @functools.cached_property
    def order(self) -> np.ndarray:
        """All rows, those next to each other that are strong in the same outputs: they look at the
        same training examples, in the cache.
        """
        return np.lexsort(self.outputs.T)


class ChunkLayout:
    """A chunk of training examples, laid out in columns, those without a gradient left out.

    Attributes:
        features: the examples.
        factors: of their scores.
        columns: [m] int32, training rows. Examples that are alike are next to each other, the
            strongest first; normalised, all are equally strong.
        column_of: [n] int32, the columns of training rows.
        ranks: [n] int32, ranks of training rows by id, which break ties.
    """

    def __init__(self, features: Features, scoring: Scoring, directions: np.ndarray) -> None:
        self.features = features
        self.factors = factors_of(features, scoring, scoring.divides_train, directions)
        self._normalized = scoring.divides_train
        norm = self.factors.norm
        alive = np.flatnonzero(norm > 0)
        outputs = np.empty((len(norm), 2), np.int32)
        threads().share(
            len(norm),
            lambda first, last: prepare.strongest_outputs_of(
                self.factors.loss_grads, self.factors.lengths, first, last, outputs
            ),
        )
        strength = np.zeros(len(alive)) if self._normalized else np.frexp(norm[alive])[1] // 2
        order = np.lexsort((outputs[alive, 1], outputs[alive, 0], -strength))
        self.columns = alive[order].astype(np.int32)
        self.column_of = np.empty(len(norm), np.int32)
        self.column_of[self.columns] = np.arange(len(self.columns), dtype=np.int32)
        self._scales = inverse(norm) if self._normalized else np.ones(len(norm))
        self.ranks = np.empty(len(features), np.int32)
        self.ranks[np.argsort(features.example_ids, kind="stable")] = np.arange(
            len(features), dtype=np.int32
        )

    def __len__(self) -> int:
        return len(self.columns)

    @functools.cached_property
    def groups(self) -> ColumnGroups:
        """The loss gradients in column groups."""
        factors = self.factors
        _, checkpoints, outputs = factors.loss_grads.shape
        count = -(-len(self.columns) // GROUP_SIZE)
        supergroups = -(-count // SUPERGROUP_SIZE)
        sketched = factors.sketches.shape[2]
        starts = np.arange(0, len(self.columns), GROUP_SIZE)
        scales = (
            np.ones(count)
            if self._normalized
            else np.maximum.reduceat(factors.norm[self.columns], starts)
        )
        groups = ColumnGroups(
            self.columns,
            np.empty((count, checkpoints, outputs, GROUP_SIZE), np.float32),
            np.empty((count, checkpoints, GROUP_SIZE), np.float32),
            scales,
            np.empty((count, checkpoints), np.float32),
            np.empty((count, checkpoints, sketched, GROUP_SIZE), np.float32),
            np.empty((count, checkpoints, GROUP_SIZE), np.float32),
            *np.zeros((2, supergroups, checkpoints, outputs, SUPERGROUP_SIZE), np.float32),
            *np.zeros((2, supergroups, checkpoints, SUPERGROUP_SIZE), np.float32),
        )
        lengths = factors.lengths * self._scales[:, None]
        self._fill(groups.loss_grads, factors.loss_grads, lengths, scales)
        if sketched:
            ones = np.ones_like(factors.lengths)
            self._fill(groups.sketches, factors.sketches, ones, np.ones(count))
        threads().share(
            count,
            lambda first, last: prepare.outline_groups(groups, first, last, factors, self._scales),
        )
        return groups

    @functools.cached_property
    def activations(self) -> np.ndarray:
        """The activations in column groups, of length 1: [G, T, D, GROUP_SIZE] float32."""
        shape = self.factors.activations.shape[1:]
        activations = np.empty((len(self.groups.scales), *shape, GROUP_SIZE), np.float32)
        scales = inverse(self.features.activation_norms)
        self._fill(activations, self.factors.activations, scales, np.ones(len(activations)))
        return activations

    def _fill(
        self, groups: np.ndarray, vectors: np.ndarray, factors: np.ndarray, scales: np.ndarray
    ) -> None:
        threads().share(
            len(groups),
            lambda first, last: prepare.fill_groups(
                groups, first, last, vectors, factors, scales, self.columns
            ),
        )

    def strongest(self, most: int) -> np.ndarray:
        """Returns the columns that are strongest in each output; see `prepare.strongest_columns`:
        [2, C, most] int32.
        """
        groups = self.groups
        outputs = groups.loss_grads.shape[2]
        columns = np.empty((2, outputs, most), np.int32)
        threads().share(
            outputs, lambda first, last: prepare.strongest_columns(groups, first, last, columns)
        )
        return columns
