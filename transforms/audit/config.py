"""Settings of an audit, and the plan that follows from them and from the feature sets."""

from __future__ import annotations

import dataclasses
import posixpath
from typing import Any

from transforms.core.errors import InputError
from transforms.duplicates.config import DuplicateTuning
from transforms.examples.format import ExampleFormat
from transforms.reports.class_names import read_class_names
from transforms.reports.previews import preview_format, why_no_pictures
from transforms.storage import feature_set_checks, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest, Manifest

# The settings that `summary.json` compares with the audit, in the order of its fields.
THRESHOLDS = ("max_suspect_fraction", "max_appeared_suspects", "max_shift")


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Settings of an audit.

    Attributes:
        learning_rates: η of each checkpoint, or None for those of the training set's manifest.
        min_suspicion: least suspicion of a suspect, a probability.
        max_suspects_per_class: largest number of suspects that are listed of each label.
        min_similarity: least similarity of duplicates with different labels, at most 1; see
            `duplicates.directions`.
        slice_keys: kept keys of the test set. Each of their values is a slice of it, beside its
            labels.
        class_names: path of a text file with one line for each class, or None.
        previous: directory of an earlier audit to compare with, or None.
        max_suspect_fraction: threshold for the fraction of suspects among the examples, or None.
        max_appeared_suspects: threshold for the number of suspects that `previous` did not have, or
            None.
        max_shift: threshold for the largest shift of a class's self-influence since `previous`, a
            Kolmogorov-Smirnov distance, or None.
        fail_on_drift: whether a crossed threshold fails the run, after everything is committed.
        overwrite: whether a complete audit with other settings is replaced.

    Raises:
        InputError: a number is out of its range, or a setting lacks another that it needs.
    """

    learning_rates: tuple[float, ...] | None = None
    min_suspicion: float = 0.5
    max_suspects_per_class: int = 1000
    min_similarity: float = 0.99
    slice_keys: tuple[str, ...] = ()
    class_names: str | None = None
    previous: str | None = None
    max_suspect_fraction: float | None = None
    max_appeared_suspects: int | None = None
    max_shift: float | None = None
    fail_on_drift: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("min_suspicion", "min_similarity", "max_suspect_fraction", "max_shift"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"`{name}={value}` is no fraction: give a number from 0 to 1")
        if self.max_suspects_per_class < 1:
            raise InputError(
                f"`max_suspects_per_class={self.max_suspects_per_class}` lists no suspect: give a "
                "number from 1 on"
            )
        if self.max_appeared_suspects is not None and self.max_appeared_suspects < 0:
            raise InputError(
                f"`max_appeared_suspects={self.max_appeared_suspects}` is negative: give a number "
                "from 0 on"
            )
        for name in ("max_appeared_suspects", "max_shift"):
            if getattr(self, name) is not None and not self.previous:
                raise InputError(f"`{name}` needs an audit to compare with: give `previous`")
        if self.fail_on_drift and all(getattr(self, name) is None for name in THRESHOLDS):
            raise InputError(
                "`fail_on_drift` needs a threshold: give `max_suspect_fraction`, "
                "`max_appeared_suspects` or `max_shift`"
            )


@dataclasses.dataclass(frozen=True)
class AuditTuning:
    """Limits of memory and of parallelism; they decide how an audit is computed.

    `slice_bytes` and `slice_values` also decide which slices it reports.

    Attributes:
        groups: largest number of groups of files that are summed in parallel; 64, as many
            processors as one large machine has.
        moment_bytes: size of the activations' sums over all groups together, which are shuffled
            (4 GB).
        slice_bytes: memory of the sums of a test set's gradients over all slices. Every worker
            holds them (64 MB).
        slice_values: largest number of slices by keys. Every row of the audit holds a number for
            each, so 256 of them take 2 KB.
        slice_group_bytes: size of the sums of gradients over all groups together, which one worker
            adds (512 MB).
        duplicates: limits of the search for duplicates.
    """

    groups: int = 64
    moment_bytes: int = 1 << 32
    slice_bytes: int = 64 << 20
    slice_values: int = 256
    slice_group_bytes: int = 1 << 29
    duplicates: DuplicateTuning = dataclasses.field(default_factory=DuplicateTuning)


@dataclasses.dataclass(frozen=True)
class AuditPlan:
    """The decisions of an audit that need its settings and manifests, and no record.

    Attributes:
        config, output: settings and directory of the audit.
        draft: the manifest of the audit, without files and counts.
        learning_rates: η of each checkpoint.
        classes: K.
        class_names: names of all classes, or None.
        previous: manifest of the audit to compare with, or None.
        preview_format: how a picture and the kept texts of an example are read, or None where an
            example has neither.
        note: why the report has no pictures, or None.
    """

    config: AuditConfig
    output: str
    draft: Manifest
    learning_rates: tuple[float, ...]
    classes: int
    class_names: tuple[str, ...] | None
    previous: Manifest | None
    preview_format: ExampleFormat | None
    note: str | None

    def check(self, config: AuditConfig, output: str) -> None:
        """Checks that settings and directory are those of the plan.

        Raises:
            InputError: they differ, so the manifest would not describe the audit.
        """
        if (config, output) != (self.config, self.output):
            raise InputError(
                "WriteAudit has another `config` or `output` than AuditLabels: pass both the same"
            )


def plan_audit(
    config: AuditConfig, output: str, train: FeatureSet, test: FeatureSet | None = None
) -> AuditPlan:
    """Checks settings and manifests, and returns the plan of an audit in `output`.

    A set may still lack its files, as before its extraction; `check_not_empty` is apart.

    Raises:
        InputError: labels are not classes that somebody gave, the two sets are of different
            models, no usable learning rate is known, or `previous`, `class_names` or `slice_keys`
            cannot be used.
    """
    rates = feature_set_checks.usable_rates(train.manifest, config.learning_rates)
    check_labels(train)
    previous = _read_previous(config.previous, output)
    class_names = read_class_names(config.class_names, train.manifest)
    if config.slice_keys and not test:
        raise InputError("`slice_keys` names keys of a test set: give one")
    if test:
        check_labels(test)
        feature_set_checks.check_same_model(
            test.manifest, train.manifest, test.directory, train.directory
        )
        _check_kept(config.slice_keys, test)
    settings: dict[str, Any] = {
        "features": train.manifest.fingerprint,
        "learning_rates": list(rates),
        "min_suspicion": config.min_suspicion,
        "max_suspects_per_class": config.max_suspects_per_class,
        "min_similarity": config.min_similarity,
        "previous": previous and previous.fingerprint,
        "class_names": class_names,
        "test_features": test and test.manifest.fingerprint,
        **({"slice_keys": list(config.slice_keys)} if config.slice_keys else {}),
        "thresholds": {name: getattr(config, name) for name in THRESHOLDS},
    }
    return AuditPlan(
        config,
        output,
        Manifest("audit", manifests.fingerprint(settings), settings, (), {}),
        rates,
        class_count(train.manifest),
        tuple(class_names) if class_names else None,
        previous,
        preview_format(train.manifest),
        why_no_pictures(train.manifest),
    )


def class_count(manifest: FeatureManifest) -> int:
    """Returns K, the number of classes: two where a binary classifier has one output."""
    return max(2, manifest.outputs)


def check_not_empty(train: FeatureSet) -> None:
    """Checks that a committed training set holds examples.

    Raises:
        InputError: there is nothing to audit.
    """
    if not train.manifest.examples:
        raise InputError(f"{train.directory} holds no example: there is nothing to audit")


def check_test_not_empty(test: FeatureSet) -> None:
    """Checks that a committed test set holds examples.

    Raises:
        InputError: there is nothing to influence.
    """
    if not test.manifest.examples:
        raise InputError(f"{test.directory} holds no test example: there is nothing to influence")


def check_labels(features: FeatureSet) -> None:
    """Checks that every example of a set has a class that somebody gave.

    Raises:
        InputError: labels are of another kind, or predictions.
    """
    manifest = features.manifest
    if manifest.task not in ("class", "binary"):
        raise InputError(
            f"{features.directory} has labels of the kind {manifest.task}: an audit needs one "
            "class for each example (tasks class and binary)"
        )
    if manifest.settings["labels"] != "given":
        raise InputError(
            f"{features.directory} was extracted with predicted labels, which cannot be audited: "
            "extract it with `labels=given`"
        )


def _check_kept(keys: tuple[str, ...], test: FeatureSet) -> None:
    kept = test.manifest.settings["keep_keys"]
    missing = [key for key in keys if key not in kept]
    if missing:
        raise InputError(
            f"`slice_keys` names {missing[0]!r}, which the records of {test.directory} do not "
            f"keep (they keep {', '.join(kept) or 'nothing'}): extract them with "
            f"`keep_keys={','.join([*kept, *missing])}`"
        )


def _read_previous(previous: str | None, output: str) -> Manifest | None:
    if not previous:
        return None
    manifest = manifests.read_kind(previous, "previous", "audit")
    if posixpath.normpath(previous) == posixpath.normpath(output):
        raise InputError(
            f"`previous={previous!r}` is where the new audit would go: give it a directory of its "
            "own"
        )
    return manifest
