"""Feature arrays for tests of numeric code, and the float64 brute force that decides what is
right.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transforms.core.features import Features
from transforms.core.topk import Ranking, TopK
from transforms.scoring.influence import Scoring, canonical_scores


def features(loss_grads, activations, prefix: str = "", labels=None) -> Features:
    """Features with the given factors [n, T, C] and [n, T, D]; ids are the prefix and the row."""
    loss_grads, activations = (
        np.asarray(loss_grads, np.float32),
        np.asarray(activations, np.float32),
    )
    n, checkpoints, _ = loss_grads.shape
    classes = np.asarray(labels).reshape(n, -1) if labels is not None else np.arange(n)[:, None] % 3
    return Features.of(
        [f"{prefix}{i:05d}".encode() for i in range(n)],
        classes,
        classes,
        np.full(n, 0.5),
        np.full((n, checkpoints), 0.5),
        loss_grads,
        activations,
    )


def draw(
    rng: np.random.Generator,
    n: int,
    checkpoints: int,
    outputs: int,
    units: int,
    prefix: str = "",
    spread: float = 2.0,
) -> Features:
    """Random features; `spread` makes the gradients' norms heavy-tailed."""
    scale = np.exp(rng.normal(size=(n, 1, 1)) * spread)
    loss_grads = rng.normal(size=(n, checkpoints, outputs)) * scale
    activations = np.maximum(rng.normal(size=(n, checkpoints, units)), 0)
    activations[..., -1] = 1
    return features(loss_grads, activations, prefix)


def write_set(
    directory: pathlib.Path,
    rows: list[int],
    seed: int,
    prefix: str,
    features: Features | None = None,
    labels=None,
    kept: Sequence[Mapping[str, Any]] | None = None,
    **changes: object,
) -> pathlib.Path:
    """A committed feature set of 2 checkpoints, 3 outputs and 6 units, whose files hold these
    numbers of records.

    Of given features, or random ones, perhaps with other labels, and with the `kept` features of
    each; `changes` are fields of the manifest.
    """
    from transforms.core.origins import Origin
    from transforms.storage import filesystems, manifests
    from transforms.storage.records import feature_record, tfrecords

    drawn = (
        draw(np.random.default_rng(seed), sum(rows), 2, 3, 6, prefix)
        if features is None
        else features
    )
    if labels is not None:
        drawn = dataclasses.replace(drawn, labels=labels, predictions=labels)
    written, start = [], 0
    for i, n in enumerate(rows):
        part = drawn.take(slice(start, start + n))
        origins = [
            Origin("examples-of-a-kind", j, b"0123456789abcdef", kept[j] if kept else {})
            for j in range(start, start + n)
        ]
        payloads = feature_record.encode(part, origins)
        written.append(
            filesystems.write(
                str(directory), f"features-{i:05d}.tfrecord", tfrecords.join_frames(payloads), n
            )
        )
        start += n
    committed = manifests.FeatureManifest(
        kind="features",
        fingerprint=prefix,
        settings={"layer": "head"},
        files=tuple(written),
        counts={"examples": sum(rows)},
        model_fingerprint="model",
        task="class",
        outputs=3,
        units=6,
        checkpoints=("epoch-1", "epoch-2"),
        learning_rates=(0.1, 0.02),
        rejected_files=(),
        rejected={},
    )
    manifests.write(str(directory), dataclasses.replace(committed, **changes))
    return directory


def exact_scores(test: Features, train: Features, scoring: Scoring) -> np.ndarray:
    """Scores [n, m] by the definition, in float64 and with flattened outer products: nothing of the
    code under test.
    """
    total = np.zeros((len(test), len(train)))
    for t, rate in enumerate(scoring.learning_rates):
        flat = [
            (
                side.loss_grads[:, t].astype(np.float64)[:, :, None]
                * side.activations[:, t].astype(np.float64)[:, None, :]
            ).reshape(len(side), -1)
            for side in (test, train)
        ]
        total += rate * flat[0] @ flat[1].T
    own = [
        sum(
            rate
            * np.sum(side.loss_grads[:, t].astype(np.float64) ** 2, 1)
            * np.sum(side.activations[:, t].astype(np.float64) ** 2, 1)
            for t, rate in enumerate(scoring.learning_rates)
        )
        for side in (test, train)
    ]
    divisor = np.ones_like(total)
    if scoring.normalize != "none":
        divisor = np.sqrt(own[1])[None, :] * (
            np.sqrt(own[0])[:, None] if scoring.normalize == "cosine" else 1
        )
        divisor = np.broadcast_to(divisor, total.shape)
    return np.divide(total, divisor, out=np.zeros_like(total), where=divisor > 0)


def full_sort(test: Features, train: Features, scoring: Scoring) -> TopK:
    """The top k by sorting the canonical scores of all pairs with Python's own sort."""
    n, m = len(test), len(train)
    tests, trains = np.divmod(np.arange(n * m), m) if m else (np.empty(0, int), np.empty(0, int))
    scores = canonical_scores(test, train, tests, trains, scoring).reshape(n, m)
    found = []
    for sign in (1, -1):
        rows, columns = [], []
        for i in range(n):
            right = [j for j in range(m) if sign * scores[i, j] > 0]
            best = sorted(
                right, key=lambda j, i=i, sign=sign: (-sign * scores[i, j], train.example_ids[j])
            )[: scoring.k]
            rows += [i] * len(best)
            columns += best
        chosen = np.array(columns, int)
        found.append(
            Ranking(
                np.array(rows, np.int32),
                scores[np.array(rows, int), chosen],
                train.example_ids[chosen],
                train.labels[chosen],
            )
        )
    return TopK(*found)


def assert_same(found: TopK, expected: TopK) -> None:
    """Asserts that two results are equal, bit for bit in scores and ids."""
    for name in ("proponents", "opponents"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.rows.tolist() == other.rows.tolist(), name
        assert one.ids.tolist() == other.ids.tolist(), name
        assert one.scores.tobytes() == other.scores.tobytes(), name
        assert one.labels.tolist() == other.labels.tolist(), name
