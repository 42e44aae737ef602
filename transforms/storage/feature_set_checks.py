"""Checks of the manifests of feature sets, before they are scored or copied from: the same model,
positions, the same extraction, usable learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence

from transforms.core.errors import InputError
from transforms.storage.manifests import FeatureManifest, differences

# Settings that say which examples a feature set is of, and nothing of how its records are computed.
_ABOUT_FILES = ("examples", "allow_truncated_files")

# A feature file is read whole and verified before use, so its size bounds the memory of whoever
# reads it: 32 MiB are little beside a worker's gigabytes.
RECORDS_PER_FILE = 8192
BYTES_PER_FILE = 32 << 20

# Beyond these limits self-influences would leave the range of float64: they are sums of products
# `η ‖δ‖² ‖ĥ‖²`, whose norms may be as small and as large as float32 numbers.
_SMALLEST_RATE, _LARGEST_RATE = 1e-30, 1e30


def check_same_model(
    test: FeatureManifest, train: FeatureManifest, test_name: str, train_name: str
) -> None:
    """Checks that two feature sets can be scored against each other.

    Raises:
        InputError: they were extracted with different models.
    """
    if test.model_fingerprint == train.model_fingerprint:
        return
    keys = ("checkpoints", "layer", "loss", "include_bias")
    differing = [key for key in keys if test.settings.get(key) != train.settings.get(key)] or [
        "checkpoints' content"
    ]
    raise InputError(
        f"{test_name} and {train_name} are features of different models (different "
        f"{', '.join(differing)}): extract both with the same checkpoints, layer, loss and bias"
    )


def check_positions(manifest: FeatureManifest, name: str) -> None:
    """Checks that a feature set's records are positions, which `sum_positions` adds up.

    Raises:
        InputError: they are examples.
    """
    if not manifest.per_token:
        raise InputError(
            "`sum_positions` adds up the positions of examples, and the records of "
            f"{name} are examples: leave it out, or extract both sets with `per_token`"
        )


def check_same_extraction(base: FeatureManifest, draft: FeatureManifest, base_name: str) -> None:
    """Checks that the records of `base` are those that `draft` would have for the same examples.

    Raises:
        InputError: they were extracted with other settings.
    """
    before, now = (
        {key: value for key, value in manifest.settings.items() if key not in _ABOUT_FILES}
        for manifest in (base, draft)
    )
    if before != now:
        raise InputError(
            f"`base={base_name!r}` was extracted with other settings "
            f"({'; '.join(differences(before, now)[:3])}): give the same settings, or leave "
            "`base` out and compute all anew"
        )


def usable_rates(
    train: FeatureManifest, learning_rates: Sequence[float] | None
) -> tuple[float, ...]:
    """Returns the learning rates that weigh the checkpoints of a training set: `learning_rates`, or
    its own where that is None or empty.

    Raises:
        InputError: no usable learning rate is known for some checkpoint.
    """
    rates = learning_rates or train.learning_rates
    if len(rates) != len(train.checkpoints):
        raise InputError(
            f"`learning_rates` has {len(rates)} numbers, the features are of "
            f"{len(train.checkpoints)} checkpoints: give one for each"
        )
    return tuple(
        usable_rate(rate, name) for rate, name in zip(rates, train.checkpoints, strict=True)
    )


def usable_rate(rate: float | None, checkpoint: str) -> float:
    """Returns a learning rate that can weigh a checkpoint.

    Raises:
        InputError: it is unknown, zero, negative, not finite, or beyond 1e±30.
    """
    if rate is None:
        raise InputError(
            f"no learning rate is known for {checkpoint}: give one per checkpoint with "
            "`learning_rates=0.1,0.01,…`"
        )
    if not _SMALLEST_RATE <= rate <= _LARGEST_RATE:
        raise InputError(
            f"the learning rate of {checkpoint} is {rate:g}, which would leave it out of every "
            "score or turn its sign: give the rates that the steps before each checkpoint were "
            "made with, by `learning_rates=0.1,0.01,…`, or leave the checkpoint out"
        )
    return rate
