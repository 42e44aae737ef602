"""The demo's directory: what is prepared in it, and the commands that a user would type there."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from pipeline.demonstration import digits
from pipeline.demonstration.digits import Digits
from transforms.core.errors import InputError
from transforms.storage import filesystems, manifests

# Proponents and opponents of each test digit.
_K = 5


def prepare_directory(directory: str, overwrite: bool) -> None:
    """Checks that the demo may write to `directory`, and withdraws a demo that is there.

    Raises:
        InputError: it is not a local directory, cannot be named in flags, cannot be written, or
            holds a demo that may not be replaced.
    """
    if not filesystems.is_local(directory) or "," in directory:
        raise InputError(
            f"--output={directory!r}: the demo needs a directory on this machine whose path has no "
            "comma"
        )
    results = results_of(directory)
    if filesystems.exists(filesystems.join(results, manifests.FILE_NAME)):
        if not overwrite:
            raise InputError(
                f"{directory} already holds a demo: pass --overwrite to run it anew, or choose "
                "another --output"
            )
        # First of all, so that a run that is stopped half-way does not leave old results beside new
        # examples.
        for committed in (results, *feature_sets_of(directory).values()):
            manifests.withdraw(committed)
    filesystems.check_writable(directory)


def results_of(directory: str) -> str:
    """Returns the directory of the results."""
    return filesystems.join(directory, "influence")


def feature_sets_of(directory: str) -> dict[str, str]:
    """Returns the directories of the feature sets: `train`, `test`."""
    results = results_of(directory)
    return {name: filesystems.join(results, f"{name}_features") for name in ("train", "test")}


def write_inputs(directory: str, train: Digits, test: Digits) -> None:
    """Writes examples and checkpoints, as a user would bring them."""
    print(f"{len(train):,} real handwritten digits to learn from, {len(test)} to test with.")
    print(
        f"{train.planted.sum()} training labels ({digits.WRONG_FRACTION:.0%}) are now wrong, on "
        "purpose. Will TracIn find them?"
    )
    for name, part in (("train", train), ("test", test)):
        digits.write_examples(
            filesystems.join(directory, "examples"), f"digits-{name}.tfrecord", part
        )
    started = time.monotonic()
    kept = digits.train(filesystems.join(directory, "checkpoints"), train)
    print(
        f"Trained a small network for {digits.EPOCHS} epochs in {time.monotonic() - started:.1f} s "
        f"and kept {kept} checkpoints."
    )


def influence_flags(directory: str, flags: Sequence[str]) -> list[str]:
    """Returns the flags of `tracin influence` for the demo's inputs, and Beam's `flags`."""
    examples = filesystems.join(directory, "examples")
    return [
        f"--train_examples={filesystems.join(examples, 'digits-train.tfrecord')}",
        f"--test_examples={filesystems.join(examples, 'digits-test.tfrecord')}",
        "--id_key=id",
        f"--checkpoints={filesystems.join(directory, 'checkpoints')}/{digits.CHECKPOINTS}",
        f"--k={_K}",
        f"--output={results_of(directory)}",
        *flags,
    ]


def score_flags(directory: str) -> list[str]:
    """Returns the flags of a `tracin score` that ranks by direction alone."""
    return [
        *(f"--{name}_features={path}" for name, path in feature_sets_of(directory).items()),
        "--normalize=cosine",
        f"--output={filesystems.join(directory, 'cosine')}",
    ]


def typed(command: str, flags: Sequence[str]) -> str:
    """Returns a command as a person types it, a flag on each line."""
    return " \\\n    ".join([f"  tracin {command}", *map(shlex.quote, flags)])
