"""The manifest of a directory: one JSON file, written last, which commits what stands beside it.

A directory without `manifest.json` holds nothing that anybody may read. Readers open the files that
the manifest lists, by name, and check their sizes and checksums. Files that it does not list are
the remains of attempts that died.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from transforms.core.errors import InputError
from transforms.storage import filesystems, globs
from transforms.storage.filesystems import StoredFile

FILE_NAME = "manifest.json"
# The names of the files of each kind of directory: a commit deletes those that it does not list.
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
# Raised whenever a reader of this version could misunderstand what a writer of another has written.
_FORMAT = 2
# How many differences a message names, and how much of a value: it stays one readable line.
_NAMED_DIFFERENCES, _VALUE_CHARACTERS = 3, 60


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a committed directory.

    Attributes:
        kind: `features`, `influence`, `audit`, `vectors` or `index`.
        fingerprint: identity of everything that the content was computed from; equal fingerprints
            mean equal content.
        settings: the settings that went into the fingerprint, for a person to read.
        files: the data files, in the order of their records.
        counts: numbers of examples, rows and the like.
    """

    kind: str
    fingerprint: str
    settings: Mapping[str, Any]
    files: tuple[StoredFile, ...]
    counts: Mapping[str, int]

    @property
    def all_files(self) -> tuple[StoredFile, ...]:
        """All files that the manifest lists."""
        return self.files

    @property
    def names(self) -> set[str]:
        """The names of all files that the manifest lists."""
        return {file.name for file in self.all_files}

    @classmethod
    def fields_of(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields of a manifest, from its JSON content.

        Raises:
            KeyError, TypeError: fields are missing or of another type.
        """
        return {**content, "files": stored_files(content["files"])}


@dataclasses.dataclass(frozen=True)
class FeatureManifest(Manifest):
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


# The kinds of directories whose manifests have fields of their own.
_TYPES: Mapping[str, type[Manifest]] = {"features": FeatureManifest}
_M = TypeVar("_M", bound=Manifest)


def stored_files(content: list[dict[str, Any]]) -> tuple[StoredFile, ...]:
    """Returns the files that a list of a manifest's JSON content names."""
    return tuple(StoredFile(**file) for file in content)


def fingerprint(content: Any) -> str:
    """Returns a SHA-256 (first 32 hex digits) of JSON-like content."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()[:32]


def write(directory: str, manifest: Manifest) -> None:
    """Writes the manifest of `directory`, and so commits it; all that it lists is written before.

    Raises:
        InputError: the disk or the store does not take it.
    """
    content = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    filesystems.write(
        directory,
        FILE_NAME,
        (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
        0,
    )


def read(directory: str, manifest_type: type[_M], field: str) -> _M:
    """Reads the manifest of a committed directory; `field` names the setting in messages.

    Raises:
        InputError: there is no manifest, it cannot be read, or it is of another type.
    """
    manifest = read_if_any(directory, field)
    if manifest is None:
        raise InputError(
            f"`{field}={directory!r}` is not a complete set: it has no {FILE_NAME}; compute it "
            "first, or wait until its run has ended"
        )
    if type(manifest) is not manifest_type:
        kinds = [kind for kind, known in _TYPES.items() if known is manifest_type]
        expected = kinds[0] if kinds else "a result"
        raise InputError(f"`{field}={directory!r}` holds {manifest.kind}, expected {expected}")
    return manifest


def read_kind(directory: str, field: str, *kinds: str) -> Manifest:
    """Reads the manifest of a committed directory of one of these kinds; `field` names the setting
    in messages.

    Raises:
        InputError: there is no manifest, it cannot be read, or it is of another kind.
    """
    manifest = read_if_any(directory, field)
    if manifest is None or manifest.kind not in kinds:
        held = manifest.kind if manifest else "no complete set"
        raise InputError(f"`{field}={directory!r}` holds {held}, expected {' or '.join(kinds)}")
    return manifest


def read_if_any(directory: str, field: str) -> Manifest | None:
    """Reads the manifest of `directory`, or returns None where there is none.

    Raises:
        InputError: there is one that cannot be read.
    """
    path = filesystems.join(directory, FILE_NAME)
    try:
        if not filesystems.exists(path):
            return None
    except (*filesystems.STORE_ERRORS, ValueError) as error:
        message = filesystems.describe_error(error)
        raise InputError(f"`{field}={directory!r}` cannot be read: {message}") from error
    try:
        content = json.loads(filesystems.read(path))
        if content.pop("format") != _FORMAT:
            raise ValueError("written by another version")
        manifest_type = _TYPES.get(content["kind"], Manifest)
        return manifest_type(**manifest_type.fields_of(content))
    except (*filesystems.STORE_ERRORS, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"`{field}`: {path} cannot be read as a manifest of this version: {error}; choose "
            "another directory, or remove the file"
        ) from error


def is_complete(directory: str, draft: Manifest, overwrite: bool) -> bool:
    """Returns whether `directory` already holds what a run would commit there: a complete set with
    the kind and the fingerprint of `draft`. With `overwrite` it never does.

    Raises:
        InputError: it holds another kind of set, or one with other settings or missing files that
            may not be overwritten.
    """
    manifest = read_if_any(directory, "output")
    if manifest is None:
        return False
    if manifest.kind != draft.kind:
        raise InputError(
            f"`output={directory!r}` holds {manifest.kind}, and {draft.kind} would go there: "
            "choose another directory"
        )
    if overwrite:
        return False
    if manifest.fingerprint != draft.fingerprint:
        differing = differences(manifest.settings, draft.settings)
        left_out = len(differing) - _NAMED_DIFFERENCES
        more = [f"and {left_out} more"] if left_out > 0 else []
        raise InputError(
            f"`output={directory!r}` is complete with other settings "
            f"({'; '.join([*differing[:_NAMED_DIFFERENCES], *more])}): choose another directory, "
            "or pass `overwrite`"
        )
    _check_sizes(directory, manifest)
    return True


def _check_sizes(directory: str, manifest: Manifest) -> None:
    sizes = filesystems.sizes(directory, sorted(manifest.names))
    for file in manifest.all_files:
        if sizes.get(file.name) != file.size:
            state = (
                f"has {sizes[file.name]} bytes instead of {file.size}"
                if file.name in sizes
                else "is missing"
            )
            raise InputError(
                f"{filesystems.join(directory, file.name)} {state}, though its manifest says it is "
                "complete: pass `overwrite` to compute it anew"
            )


def commit(directory: str, manifest: _M, overwrite: bool) -> _M:
    """Commits `directory` with a manifest, and deletes files of this kind that it does not list:
    remains of attempts that died.

    Where an equal set has been committed meanwhile, say by an earlier try of this step, that one
    stands. Returns the manifest that is committed.

    Raises:
        InputError: a set with other settings has been committed there since this run was started.
    """
    before = read_if_any(directory, "output")
    if before is not None and not overwrite:
        if before.fingerprint != manifest.fingerprint:
            raise InputError(
                f"{directory} was committed by another run with other settings while this one "
                "went on: give each its own directory"
            )
        filesystems.delete(directory, sorted(manifest.names - before.names))
        return cast(_M, before)  # of the same kind, or its fingerprint would differ
    write(directory, manifest)
    patterns = _PATTERNS[manifest.kind]
    # A writer that was killed has left its files hidden.
    hidden = [filesystems.hidden_name(pattern, "*") for pattern in patterns]
    filesystems.delete(
        directory,
        sorted(globs.names_matching(directory, [*patterns, *hidden]) - manifest.names),
    )
    return manifest


def withdraw_old(directory: str, draft: Manifest, overwrite: bool) -> None:
    """Withdraws the manifest of `directory`, and deletes its files, where `draft` is to replace
    them.

    For results whose files have fixed names, before the first is written. Not before the graph
    runs: one that is only built, or never starts, must leave the old result alone.

    Raises:
        InputError: it may not be replaced; see `is_complete`.
    """
    is_complete(directory, draft, overwrite)
    if overwrite:
        withdraw(directory)


def withdraw(directory: str) -> None:
    """Withdraws the manifest of `directory`, if there is one, and then deletes its files."""
    manifest = read_if_any(directory, "output")
    if manifest is not None:
        filesystems.delete(directory, [FILE_NAME])
        filesystems.delete(directory, sorted(manifest.names))


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Returns the differences of two settings for a person, each down to its smallest part:
    `k was 10, is 20`.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        prefix = str(now.get("name", before.get("name", ""))) or name
        return [
            difference
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
            for difference in differences(before.get(key), now.get(key), f"{prefix} {key}".strip())
        ]
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return [f"{name} were {len(before)}, are {len(now)}"]
        return [
            difference
            for a, b in zip(before, now, strict=True)
            if a != b
            for difference in differences(a, b, name)
        ]
    return [f"{name} was {_short(before)}, is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _VALUE_CHARACTERS else text[: _VALUE_CHARACTERS - 3] + "…"
