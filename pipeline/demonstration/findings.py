"""What the demo finds: where the worst predictions come from, and which labels are wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.demonstration.digits import Digits
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.influence.rows import read_rows
from transforms.scoring.influence import self_influence
from transforms.storage import filesystems, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.feature_set_checks import usable_rates
from transforms.storage.manifests import FeatureManifest

FRACTIONS = (0.1, 0.2)  # parts of the training set that a person may look through
_WORST = 5  # test digits that are shown


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A training digit, by its row, and its score for a test digit."""

    row: int
    score: float


@dataclasses.dataclass(frozen=True)
class Traced:
    """A test digit and where its prediction comes from.

    Attributes:
        row: its row among the test digits.
        prediction: the digit that the last checkpoint reads.
        label_probability: probability of its true label, by the last checkpoint.
        proponents, opponents: training digits, strongest first.
    """

    row: int
    prediction: int
    label_probability: float
    proponents: tuple[Candidate, ...]
    opponents: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """The training digits in the order in which a person should look at them.

    Attributes:
        order: [n] rows, by falling self-influence.
        found: [n + 1] number of planted wrong labels among the first 0 … n.
    """

    order: np.ndarray
    found: np.ndarray

    @staticmethod
    def of(self_influence: np.ndarray, planted: np.ndarray) -> Inspection:
        """Returns the inspection of examples with self-influence [n], of which `planted` [n] have
        wrong labels.
        """
        order = np.argsort(-self_influence, kind="stable")
        return Inspection(order, np.concatenate([[0], np.cumsum(planted[order])]))

    def first(self, fraction: float) -> int:
        """Returns the number of examples in a fraction of them."""
        return int(fraction * len(self.order))


@dataclasses.dataclass(frozen=True)
class Findings:
    """The findings of a run.

    Attributes:
        traced: the test digits that the network reads worst.
        inspection: the training digits by falling self-influence.
        right: the part of the test digits that the network reads right.
    """

    traced: Sequence[Traced]
    inspection: Inspection
    right: float

    @staticmethod
    def read(directory: str, train: Digits, test: Digits) -> Findings:
        """Reads them from the results of `tracin influence` in `directory`."""
        rows = {row["test_id"]: row for row in read_rows(directory)}
        test_features, _ = read_features(filesystems.join(directory, "test_features"))
        train_features, manifest = read_features(filesystems.join(directory, "train_features"))
        wrong = sum(row["test_prediction"] != row["test_label"] for row in rows.values())
        return Findings(
            trace_worst(test_features, rows, train, test),
            inspect(train_features, manifest, train),
            1 - wrong / len(test),
        )


def read_features(directory: str) -> tuple[Features, FeatureManifest]:
    """Reads a whole feature set and its manifest."""
    manifest = manifests.read(directory, FeatureManifest, "output")
    stored = FeatureSet(directory, manifest)
    return stored.read([Span(i, 0, count) for i, count in enumerate(stored.counts)]), manifest


def trace_worst(
    features: Features, rows: Mapping[str, Mapping[str, Any]], train: Digits, test: Digits
) -> list[Traced]:
    """Returns the test digits whose true label the last checkpoint finds least likely, worst first.

    Args:
        features: features of the test digits.
        rows: their rows of influence by id.
        train: the training digits.
        test: the test digits.
    """
    train_rows = {example_id: i for i, example_id in enumerate(train.ids)}
    test_rows = {example_id: i for i, example_id in enumerate(test.ids)}

    def candidates(ranked: Sequence[Mapping[str, Any]]) -> tuple[Candidate, ...]:
        return tuple(Candidate(train_rows[row["train_id"]], row["score"]) for row in ranked)

    traced = []
    for i in np.argsort(features.label_probabilities[:, -1], kind="stable")[:_WORST]:
        row = rows[features.example_ids[i].decode()]
        traced.append(
            Traced(
                row=test_rows[row["test_id"]],
                prediction=row["test_prediction"],
                label_probability=float(features.label_probabilities[i, -1]),
                proponents=candidates(row["proponents"]),
                opponents=candidates(row["opponents"]),
            )
        )
    return traced


def inspect(features: Features, manifest: FeatureManifest, train: Digits) -> Inspection:
    """Returns the training digits by falling self-influence, given their features."""
    own = self_influence(features, usable_rates(manifest, None))
    scores = dict(zip(features.example_ids.tolist(), own, strict=True))
    return Inspection.of(
        np.array([scores[example_id.encode()] for example_id in train.ids]), train.planted
    )
