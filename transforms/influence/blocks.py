"""Scored blocks of test examples, and how the candidates of their tiles are merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np

from transforms.core import topk
from transforms.core.features import Features
from transforms.core.topk import TopK
from transforms.scoring.influence import Scoring, self_influence


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredBlock:
    """What is known of a block of test examples: what their rows tell of themselves, and their best
    candidates so far.

    Attributes:
        test_ids, labels, predictions, probabilities: [n, …] as in `records.Features`.
        label_probabilities: [n] float32, of the label at the last checkpoint.
        self_influence: [n] float64.
        best: the k strongest proponents and opponents.
    """

    test_ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    self_influence: np.ndarray
    best: TopK

    @staticmethod
    def of(tests: Features, best: TopK, scoring: Scoring) -> ScoredBlock:
        """Of test examples and what was found for them."""
        return ScoredBlock(
            tests.example_ids,
            tests.labels,
            tests.predictions,
            tests.probabilities,
            tests.label_probabilities[:, -1],
            self_influence(tests, scoring.learning_rates),
            best,
        )

    @property
    def nbytes(self) -> int:
        """Size of the arrays, which is nearly all that travels."""
        own = (
            self.test_ids,
            self.labels,
            self.predictions,
            self.probabilities,
            self.label_probabilities,
            self.self_influence,
        )
        rankings = (self.best.proponents, self.best.opponents)
        return sum(array.nbytes for array in own) + sum(
            array.nbytes
            for one in rankings
            for array in (one.rows, one.scores, one.ids, one.labels)
        )


class MergeTopK(beam.CombineFn):
    """Merges the scored blocks of the same test examples, by array operations: ScoredBlock →
    ScoredBlock, or another that has a `best`.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def create_accumulator(self) -> ScoredBlock | None:
        """Nothing is known yet."""
        return None

    def add_input(self, accumulator: ScoredBlock | None, block: ScoredBlock) -> ScoredBlock:
        """Merges one more block."""
        return block if accumulator is None else self._merge([accumulator, block])

    def merge_accumulators(self, accumulators: Iterable[ScoredBlock | None]) -> ScoredBlock | None:
        """Merges what several workers found."""
        known = [accumulator for accumulator in accumulators if accumulator is not None]
        return self._merge(known) if known else None

    def extract_output(self, accumulator: ScoredBlock | None) -> ScoredBlock | None:
        """The merged block."""
        return accumulator

    def _merge(self, blocks: Sequence[ScoredBlock]) -> ScoredBlock:
        return (
            blocks[0]
            if len(blocks) == 1
            else dataclasses.replace(
                blocks[0], best=topk.merge([block.best for block in blocks], self._k)
            )
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SummedBlock:
    """What is known of a block of test examples: what their rows tell of themselves, and their best
    candidates so far.

    Attributes:
        test_ids, positions, wrong, label_probabilities, self_influence: [n] as in
            `gradients.Gradients`.
        best: the k strongest proponents and opponents; what stands for their labels is their
            numbers of positions.
    """

    test_ids: np.ndarray
    positions: np.ndarray
    wrong: np.ndarray
    label_probabilities: np.ndarray
    self_influence: np.ndarray
    best: TopK

    @property
    def nbytes(self) -> int:
        """Size of the arrays, which is nearly all that travels."""
        own = (
            self.test_ids,
            self.positions,
            self.wrong,
            self.label_probabilities,
            self.self_influence,
        )
        rankings = (self.best.proponents, self.best.opponents)
        return sum(
            array.nbytes
            for array in (
                *own,
                *(
                    getattr(one, name)
                    for one in rankings
                    for name in ("rows", "scores", "ids", "labels")
                ),
            )
        )
