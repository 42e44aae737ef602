"""How a directory is committed and checked: one JSON file, written last, that says what stands
beside it.

A directory without `manifest.json` holds nothing that anybody may read. Readers open the files that
the manifest lists, by name, and check their sizes and checksums; files that it does not list are
the remains of attempts that died.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from transforms.core.errors import InputError
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile

FILE_NAME = "manifest.json"
# The names of the files of each kind of directory.
_PATTERNS = {
    "features": ("features-*.tfrecord", "rejected-*.jsonl", "finished-*.json"),
    "influence": ("influence-*.jsonl", "influence-*.parquet", "report.html", "recall.json"),
    "vectors": ("vectors-*", "ids-*.npy", "projection.npz"),
    "index": ("index-*.faiss", "projection.npz"),
    "audit": (
        "examples-*.parquet",
        "changes-*.parquet",
        "suspects.parquet",
        "suspects.jsonl",
        "suspects.csv",
        "duplicates.parquet",
        "duplicates.jsonl",
        "summary.json",
        "report.html",
        "weighed-*.npz",
    ),
}
_FORMAT = 2
# Settings of a feature set that say which examples are in it, and not what its records are.
_ABOUT_FILES = ("examples", "allow_truncated_files")

# A feature file is read whole and verified before use, so its size bounds the memory of whoever
# reads it.
RECORDS_PER_FILE = 8192
BYTES_PER_FILE = 32 << 20


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a committed directory holds.

    Attributes:
        kind: `features`, `influence`, `audit`, `vectors` or `index`.
        fingerprint: identity of what the content was computed from; equal fingerprints mean equal
            content.
        settings: what went into the fingerprint, for a person to read.
        files: the data files, in the order of their records.
        counts: how many examples or rows, and the like.
    """

    kind: str
    fingerprint: str
    settings: Mapping[str, Any]
    files: tuple[StoredFile, ...]
    counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class FeatureManifest(Manifest):
    """What a feature set holds; `fingerprint` is the extraction fingerprint.

    Attributes:
        model_fingerprint: identity of checkpoints, layer, loss and bias; equal for sets that can be
            scored against each other.
        task: what labels and predictions are: `class`, `binary`, `multilabel` or `regression`.
        outputs: C, the length of a loss gradient.
        units: D, the length of an activation, the trailing 1 of an included bias counted.
        checkpoints: names of the checkpoints, in order; the last one predicts.
        learning_rates: η of each checkpoint as its optimizer had it or the flag gave it; None where
            neither did.
        rejected_files: lines of JSON for what was set aside.
        rejected: how many were set aside, by reason.
        feature_dtype: what loss gradients and activations are stored as, one of `records.DTYPES`.
        per_token: whether a record is a position of an example; `counts` tells both numbers then.
        inputs: what the examples hold for the model: the key, shape and dtype of each of its
            inputs.
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
        """How many records the set holds: examples, or positions of them."""
        return sum(file.count for file in self.files)

    @property
    def integer_labels(self) -> bool:
        """Whether labels and predictions are class indices."""
        return self.task != "regression"


_M = TypeVar("_M", bound=Manifest)


def fingerprint(content: Any) -> str:
    """A SHA-256 (first 32 hex digits) of JSON-like content."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()[:32]


def write(directory: str, manifest: Manifest) -> None:
    """Commits `directory`: writes its manifest, after everything that the manifest lists."""
    content = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    filesystems.write(
        directory,
        FILE_NAME,
        (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
        0,
    )


def read(directory: str, kind: type[_M], field: str) -> _M:
    """Reads the manifest of a committed directory; `field` names the setting in messages.

    Raises:
        InputError: there is no manifest, it cannot be understood, or it is of another kind.
    """
    found = read_if_any(directory, field)
    if found is None:
        raise InputError(
            f"`{field}={directory!r}` is not a complete set: it has no {FILE_NAME}; compute it "
            "first, or wait until its run has ended"
        )
    if type(found) is not kind:
        raise InputError(
            f"`{field}={directory!r}` holds {found.kind}, expected "
            f"{'features' if kind is FeatureManifest else 'influence'}"
        )
    return found


def read_kind(directory: str, field: str, *kinds: str) -> Manifest:
    """Reads the manifest of a committed directory of one of these kinds; `field` names the setting
    in messages.

    Raises:
        InputError: there is no manifest, it cannot be understood, or it is of another kind.
    """
    found = read_if_any(directory, field)
    if found is None or found.kind not in kinds:
        raise InputError(
            f"`{field}={directory!r}` holds {found.kind if found else 'no complete set'}, expected "
            f"{' or '.join(kinds)}"
        )
    return found


def read_if_any(directory: str, field: str) -> Manifest | None:
    """Reads the manifest of `directory`, or returns None where there is none.

    Raises:
        InputError: there is one that cannot be understood.
    """
    path = filesystems.join(directory, FILE_NAME)
    try:
        if not filesystems.exists(path):
            return None
    except (*filesystems.STORE_ERRORS, ValueError) as error:
        raise InputError(
            f"`{field}={directory!r}` cannot be read: {filesystems.told(error)}"
        ) from error
    try:
        content = json.loads(filesystems.read(path))
        if content.pop("format") != _FORMAT:
            raise ValueError("written by another version")
        for key in ("files", "rejected_files"):
            if key in content:
                content[key] = tuple(StoredFile(**file) for file in content[key])
        for key in ("checkpoints", "learning_rates", "inputs"):
            if key in content:
                content[key] = tuple(content[key])
        return (FeatureManifest if content["kind"] == "features" else Manifest)(**content)
    except (*filesystems.STORE_ERRORS, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"`{field}`: {path} cannot be read as a manifest of this version: {error}; choose "
            "another directory, or remove the file"
        ) from error


def check_same_model(
    test: FeatureManifest, train: FeatureManifest, test_name: str, train_name: str
) -> None:
    """Makes sure that two sets can be scored against each other.

    Raises:
        InputError: they were extracted with different models.
    """
    if test.model_fingerprint != train.model_fingerprint:
        keys = ("checkpoints", "layer", "loss", "include_bias")
        differing = [key for key in keys if test.settings.get(key) != train.settings.get(key)] or [
            "checkpoints' content"
        ]
        raise InputError(
            f"{test_name} and {train_name} are features of different models (different "
            f"{', '.join(differing)}): extract both with the same checkpoints, layer, loss and bias"
        )


def check_positions(found: FeatureManifest, name: str) -> None:
    """Makes sure that a set's records are positions, where these are to be summed.

    Raises:
        InputError: they are examples.
    """
    if not found.per_token:
        raise InputError(
            f"`sum_positions` adds up the positions of examples, and the records of {name} are "
            "examples: leave it out, or extract both sets with `per_token`"
        )


def check_same_extraction(base: FeatureManifest, draft: FeatureManifest, base_name: str) -> None:
    """Makes sure that records of another set are what would be computed for the same examples.

    Raises:
        InputError: they were extracted otherwise.
    """
    was, now = (
        {key: value for key, value in one.settings.items() if key not in _ABOUT_FILES}
        for one in (base, draft)
    )
    if was != now:
        raise InputError(
            f"`base={base_name!r}` was extracted with other settings "
            f"({'; '.join(_differences(was, now)[:3])}): give the same settings, or "
            "leave `base` out and compute all anew"
        )


def usable_rates(train: FeatureManifest, given: Sequence[float] | None) -> tuple[float, ...]:
    """The learning rates that weigh the checkpoints of a training set: those that are given, else
    its own.

    Raises:
        InputError: no usable learning rate is known for some checkpoint.
    """
    rates = given or train.learning_rates
    if len(rates) != len(train.checkpoints):
        raise InputError(
            f"`learning_rates` has {len(rates)} numbers, the features are of "
            f"{len(train.checkpoints)} checkpoints: give one for each"
        )
    return tuple(
        usable_rate(rate, name) for rate, name in zip(rates, train.checkpoints, strict=True)
    )


def usable_rate(rate: float | None, checkpoint: str) -> float:
    """A learning rate that can weigh a checkpoint.

    Raises:
        InputError: it is unknown, zero, negative, not finite, or beyond 1e±30.
    """
    if rate is None:
        raise InputError(
            f"no learning rate is known for {checkpoint}: give one per checkpoint with "
            "`learning_rates=0.1,0.01,…`"
        )
    # Beyond these limits self-influences would leave the range of float64.
    if not 1e-30 <= rate <= 1e30:
        raise InputError(
            f"the learning rate of {checkpoint} is {rate:g}, which would leave it out of every "
            "score or turn its sign: give the rates that the steps before each checkpoint were "
            "made with, by `learning_rates=0.1,0.01,…`, or leave the checkpoint out"
        )
    return rate


def is_complete(
    directory: str, kind: str, expected: str, settings: Mapping[str, Any], overwrite: bool
) -> bool:
    """Whether `directory` already holds what a run would write there: a complete set of this kind
    with the fingerprint `expected`.

    With `overwrite` it never does. `settings` tell a person what differs.

    Raises:
        InputError: it holds another kind of set, or one with other settings or missing files that
            may not be overwritten.
    """
    found = read_if_any(directory, "output")
    if found is None:
        return False
    if found.kind != kind:
        raise InputError(
            f"`output={directory!r}` holds {found.kind}, and {kind} would go there: choose another "
            "directory"
        )
    if overwrite:
        return False
    if found.fingerprint != expected:
        differing = _differences(found.settings, settings)
        more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
        told = "; ".join([*differing[:3], *more])
        raise InputError(
            f"`output={directory!r}` is complete with other settings ({told}): choose another "
            "directory, or pass `overwrite`"
        )
    there = filesystems.sizes(directory, sorted(_names(found)))
    for file in _files(found):
        if there.get(file.name) != file.size:
            state = (
                f"has {there[file.name]} bytes instead of {file.size}"
                if file.name in there
                else "is missing"
            )
            raise InputError(
                f"{filesystems.join(directory, file.name)} {state}, though its manifest says it is "
                "complete: pass `overwrite` to compute it anew"
            )
    return True


def commit(directory: str, manifest: _M, overwrite: bool) -> _M:
    """Commits `directory` with a manifest, and deletes the files of ours that it does not list:
    remains of attempts that died.

    Where an equal set has been committed meanwhile, say by an earlier try of this step, that one
    stands. Returns what is committed.

    Raises:
        InputError: a set with other settings has been committed there since this run was started.
    """
    before = read_if_any(directory, "output")
    if before is not None and not overwrite:
        if before.fingerprint != manifest.fingerprint:
            raise InputError(
                f"{directory} was committed by another run with other settings while this one went "
                "on: give each its own directory"
            )
        filesystems.delete(directory, sorted(_names(manifest) - _names(before)))
        return cast(_M, before)  # of the same kind, or its fingerprint would differ
    write(directory, manifest)
    patterns = _PATTERNS[manifest.kind]
    # A writer that was killed has left its files hidden.
    hidden = [filesystems.hidden_name(pattern, "*") for pattern in patterns]
    filesystems.delete(
        directory,
        sorted(filesystems.names_matching(directory, [*patterns, *hidden]) - _names(manifest)),
    )
    return manifest


def take_back_old(directory: str, draft: Manifest, overwrite: bool) -> None:
    """Takes back what is committed in `directory` where it is to be replaced: its manifest first,
    then its files.

    For results whose files have fixed names, before the first is written. Not before the graph
    runs: one that is only built, or never starts, must leave the old result alone.

    Raises:
        InputError: it may not be replaced; see `is_complete`.
    """
    is_complete(directory, draft.kind, draft.fingerprint, draft.settings, overwrite)
    if overwrite:
        take_back(directory)


def take_back(directory: str) -> None:
    """Takes back what is committed in `directory`, if anything: its manifest first, then its
    files.
    """
    before = read_if_any(directory, "output")
    if before is not None:
        filesystems.delete(directory, [FILE_NAME])
        filesystems.delete(directory, sorted(_names(before)))


def _files(manifest: Manifest) -> tuple[StoredFile, ...]:
    return (
        *manifest.files,
        *(manifest.rejected_files if isinstance(manifest, FeatureManifest) else ()),
    )


def _names(manifest: Manifest) -> set[str]:
    return {file.name for file in _files(manifest)}


def _differences(was: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two settings, down to the smallest part that does."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        named = str(now.get("name", was.get("name", "")))
        keys = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
        prefix = named or name
        return [
            told
            for key in keys
            for told in _differences(was.get(key), now.get(key), f"{prefix} {key}".strip())
        ]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [
            told
            for a, b in zip(was, now, strict=True)
            if a != b
            for told in _differences(a, b, name)
        ]
    if isinstance(was, list) and isinstance(now, list):
        return [f"{name} were {len(was)}, are {len(now)}"]
    return [f"{name} was {_short(was)}, is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
