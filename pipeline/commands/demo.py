"""`tracin demo`: the whole story on real handwritten digits, some of them labelled wrong on
purpose.

It prepares what a user would bring (examples and checkpoints), runs `tracin influence` on them, and
shows what that found.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.commands import influence
from pipeline.demonstration import digits, gallery
from pipeline.demonstration.digits import Digits
from pipeline.demonstration.gallery import Candidate, Inspection, Traced
from pipeline.flags import parser
from pipeline.running import runner
from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.core.shapes import Span
from transforms.influence.rows import read_rows
from transforms.scoring.influence import self_influence
from transforms.storage import feature_manifest, filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet

_K = 5
_WORST = 5  # test digits that are shown
_PICTURE = "demo.png"


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("demo", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    started = time.monotonic()
    args, flags = parser.parse("demo", argv)
    runner.beam_options(flags)
    _check_installed()
    directory = args.output.rstrip("/") or "/"
    _prepare_directory(directory, args.overwrite)
    train, test = digits.load()
    _prepare(directory, train, test)
    command = _command(directory, flags)
    print(
        f"\nNow what you would type for data of your own:\n\n{_typed('influence', command)}\n",
        flush=True,
    )
    status = influence.run(command)
    if status:
        raise runner.RunFailed(f"tracin influence ended with status {status}")
    _show(directory, train, test)
    print(f"\nAll of it took {time.monotonic() - started:.0f} s.")


def _check_installed() -> None:
    for name, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"the demo needs {package}, which is not installed: pip install 'tracin-beam[demo]'"
            )


def _prepare_directory(directory: str, overwrite: bool) -> None:
    """Makes sure that the demo may write to `directory`, and takes back a demo that is there.

    Raises:
        InputError: it is not a local directory, cannot be named in flags, cannot be written, or
            holds a demo that may not be replaced.
    """
    if not filesystems.is_local(directory) or "," in directory:
        raise InputError(
            f"--output={directory!r}: the demo needs a directory on this machine whose path has no "
            "comma"
        )
    results = filesystems.join(directory, "influence")
    if filesystems.exists(filesystems.join(results, manifests.FILE_NAME)):
        if not overwrite:
            raise InputError(
                f"{directory} already holds a demo: pass --overwrite to run it anew, or choose "
                "another --output"
            )
        # First of all, so that a run that is stopped half-way does not leave old results beside new
        # examples.
        for committed in (
            results,
            *(filesystems.join(results, f"{name}_features") for name in ("train", "test")),
        ):
            manifests.withdraw(committed)
    filesystems.check_writable(directory)


def _prepare(directory: str, train: Digits, test: Digits) -> None:
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


def _command(directory: str, flags: Sequence[str]) -> list[str]:
    """The flags of `tracin influence` for the demo's examples and checkpoints, and those of
    Beam.
    """
    return [
        f"--train_examples={filesystems.join(directory, 'examples/digits-train.tfrecord')}",
        f"--test_examples={filesystems.join(directory, 'examples/digits-test.tfrecord')}",
        "--id_key=id",
        f"--checkpoints={filesystems.join(directory, 'checkpoints')}/{digits.CHECKPOINTS}",
        f"--k={_K}",
        f"--output={filesystems.join(directory, 'influence')}",
        *flags,
    ]


def _typed(command: str, flags: Sequence[str]) -> str:
    """A command as a person types it, a flag on each line."""
    return " \\\n    ".join([f"  tracin {command}", *map(shlex.quote, flags)])


def _show(directory: str, train: Digits, test: Digits) -> None:
    """Tells what the run in `directory` found, in the terminal and as a picture."""
    results = filesystems.join(directory, "influence")
    rows = {row["test_id"]: row for row in read_rows(results)}
    traced = trace_worst(_read(filesystems.join(results, "test_features"))[0], rows, train, test)
    inspection = inspect(*_read(filesystems.join(results, "train_features")), train)
    wrong = sum(row["test_prediction"] != row["test_label"] for row in rows.values())
    console = Console(highlight=False)

    print(
        f"\nThe network reads {1 - wrong / len(test):.1%} of the test digits right. Here are the "
        f"{len(traced)} it reads worst."
    )
    print("Proponents pulled it towards the true label, opponents away from it:\n")
    console.print(gallery.traced_table(traced, test, train, console))
    opponents = [opponent for one in traced for opponent in one.opponents]
    planted = sum(bool(train.planted[one.row]) for one in opponents)
    chance = len(opponents) * train.planted.mean()
    print(
        f"\n{planted} of their {len(opponents)} strongest opponents have a planted wrong label "
        f"(chance: {chance:.1f})."
    )

    print("\nWhich training labels are wrong? Self-influence, which was not told, sorts them:\n")
    console.print(gallery.found_table(inspection))
    print("\nThe first suspects:\n")
    console.print(gallery.suspects_table(inspection, train, console))

    filesystems.write(directory, _PICTURE, gallery.picture(traced, inspection, test, train), 1)
    scoring = [
        f"--{name}_features={filesystems.join(results, f'{name}_features')}"
        for name in ("train", "test")
    ]
    scoring += ["--normalize=cosine", f"--output={filesystems.join(directory, 'cosine')}"]
    print(f"\nLook at   {filesystems.join(directory, _PICTURE)}")
    print(
        f"Rows      {filesystems.join(results, 'influence-00000.jsonl')} and .parquet, one per "
        "test digit"
    )
    print("Try next  to score the same features by direction alone, not by size:\n")
    print(_typed("score", scoring))


def _read(directory: str) -> tuple[Features, FeatureManifest]:
    committed = manifests.read(directory, FeatureManifest, "output")
    stored = FeatureSet(directory, committed)
    return stored.read([Span(i, 0, count) for i, count in enumerate(stored.counts)]), committed


def trace_worst(
    features: Features, rows: Mapping[str, Mapping[str, Any]], train: Digits, test: Digits
) -> list[Traced]:
    """The test digits whose true label the last checkpoint finds least likely, worst first.

    `features` are the test digits', `rows` their rows of influence by id.
    """
    train_rows = {example_id: i for i, example_id in enumerate(train.ids)}
    test_rows = {example_id: i for i, example_id in enumerate(test.ids)}

    def candidates(found: Sequence[Mapping[str, Any]]) -> tuple[Candidate, ...]:
        return tuple(Candidate(train_rows[one["train_id"]], one["score"]) for one in found)

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


def inspect(features: Features, committed: FeatureManifest, train: Digits) -> Inspection:
    """The training digits by falling self-influence, given their features."""
    own = self_influence(features, feature_manifest.usable_rates(committed, None))
    scores = dict(zip(features.example_ids.tolist(), own, strict=True))
    return Inspection.of(
        np.array([scores[example_id.encode()] for example_id in train.ids]), train.planted
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
