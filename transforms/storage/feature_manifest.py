"""The manifest of a feature set, and the checks that scoring and extraction make of it: the same
model, positions, the same extraction, usable learning rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transforms.core.errors import InputError
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest, differences, stored_files

# Settings that say which examples a feature set is of, and nothing of how its records are computed.
_ABOUT_FILES = ("examples", "allow_truncated_files")

# A feature file is read whole and verified before use, so its size bounds the memory of whoever
# reads it: 32 MiB are little beside a worker's gigabytes.
RECORDS_PER_FILE = 8192
BYTES_PER_FILE = 32 << 20

# Beyond these limits self-influences would leave the range of float64: they are sums of products
# `η ‖δ‖² ‖ĥ‖²`, whose norms may be as small and as large as float32 numbers.
_SMALLEST_RATE, _LARGEST_RATE = 1e-30, 1e30


@dataclasses.dataclass(frozen=True)
class FeatureManifest(Manifest, kind="features"):
    """The manifest of a feature set; `fingerprint` is the extraction fingerprint.

    Attributes:
        model_fingerprint: identity of checkpoints, layer, loss and bias; equal for sets that can be
            scored against each other.
        task: the kind of labels and predictions: `class`, `binary`, `multilabel` or `regression`.
        outputs: C, the length of a loss gradient.
        units: D, the length of an activation, the trailing 1 of an included bias counted.
        checkpoints: names of the checkpoints, in order; the last one predicts.
        learning_rates: η of each checkpoint, from its optimizer or from `learning_rates`; None
            where neither has one.
        rejected_files: files with a line of JSON for each rejected example.
        rejected: numbers of rejected examples, by reason.
        feature_dtype: dtype of stored loss gradients and activations, a key of
            `transforms.core.features.DTYPES`.
        per_token: whether a record is a position of an example; `counts` then has both numbers.
        inputs: the key, shape and dtype of each of the model's inputs in an example.
    """

    model_fingerprint: str
    task: str
    outputs: int
    units: int
    checkpoints: tuple[str, ...]
    learning_rates: tuple[float | None, ...]
    rejected_files: tuple[StoredFile, ...]
    rejected: Mapping[str, int]
    feature_dtype: str = "float32"
    per_token: bool = False
    inputs: tuple[Mapping[str, Any], ...] = ()

    @property
    def examples(self) -> int:
        """Number of records: examples, or positions of examples."""
        return sum(file.count for file in self.files)

    @property
    def integer_labels(self) -> bool:
        """Whether labels and predictions are class indices."""
        return self.task != "regression"

    @property
    def all_files(self) -> tuple[StoredFile, ...]:
        """All files that the manifest lists: feature files, then files of rejected examples."""
        return (*self.files, *self.rejected_files)

    @classmethod
    def fields_of(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields of a feature set's manifest, from its JSON content.

        Raises:
            KeyError, TypeError: fields are missing or of another type.
        """
        fields = super().fields_of(content)
        lists = ("checkpoints", "learning_rates", "inputs")
        return {
            **fields,
            **{key: tuple(fields[key]) for key in lists if key in fields},
            "rejected_files": stored_files(content["rejected_files"]),
        }


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
