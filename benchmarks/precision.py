"""What shorter numbers cost: features stored as bfloat16 or float16, and a network that computes in
one of them, against float32.

    python -m benchmarks.precision [DIR] [--k=50]

Fashion-MNIST, 60,000 × 10,000 examples, 6 checkpoints, both signs, no normalisation and cosine.
Printed are how many of the float32 top k are found again (recall: mean over test examples and
signs, and the lowest of a test example and sign), and the median relative error of the scores of
those. DIR keeps the data (a temporary directory otherwise).
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import fashion_mnist, results
from benchmarks.influence import influence_flags
from benchmarks.measure import command, in_own_process, read_features, run, searched

if TYPE_CHECKING:
    from transforms.core.features import Features
    from transforms.core.topk import TopK


def lower(checkpoint: pathlib.Path, policy: str, directory: pathlib.Path) -> None:
    """Saves a checkpoint again as a model of the same weights that computes under another of
    Keras's dtype policies.
    """
    import keras

    directory.mkdir(parents=True, exist_ok=True)
    model = keras.saving.load_model(checkpoint)
    other = keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "dtype": policy}
        ),
    )
    other.set_weights(model.get_weights())
    other.compile(model.optimizer.__class__.from_config(model.optimizer.get_config()), model.loss)
    other.optimizer.build(other.trainable_variables)
    other.optimizer.iterations.assign(model.optimizer.iterations)
    other.save(directory / checkpoint.name)


def stored_as(features: Features, dtype: str) -> Features:
    """What a feature set of this dtype holds of the same features."""
    from transforms.core.features import Features

    return Features.of(
        features.example_ids,
        features.labels,
        features.predictions,
        features.probabilities,
        features.label_probabilities,
        features.loss_grads,
        features.activations,
        dtype,
    )


def compared(found: TopK, exact: TopK, tests: int) -> tuple[float, float, float]:
    """Mean and lowest recall of a test example and sign, and the median relative error of the
    scores that are in both.
    """
    recalls, errors = [], []
    for one, other in ((found.proponents, exact.proponents), (found.opponents, exact.opponents)):
        mine, right = (
            {
                (int(row), id_): score
                for row, id_, score in zip(r.rows, r.ids, r.scores, strict=True)
            }
            for r in (one, other)
        )
        shared = right.keys() & mine.keys()
        hits = np.bincount([row for row, _ in shared], minlength=tests)
        totals = np.bincount([row for row, _ in right], minlength=tests)
        recalls.append(hits[totals > 0] / totals[totals > 0])
        errors += [abs(mine[key] / right[key] - 1) for key in shared]
    recall = np.concatenate(recalls)
    return float(recall.mean()), float(recall.min()), float(np.median(errors))


def report(data: pathlib.Path, k: int) -> None:
    """Scores what each way gives, and prints the table."""
    from transforms.scoring.influence import Scoring

    test, train, rates = read_features(data / "out")
    rounded = {
        dtype: (stored_as(test, dtype), stored_as(train, dtype))
        for dtype in ("bfloat16", "float16")
    }
    ways = {f"stored as {dtype}": sets for dtype, sets in rounded.items()}
    for policy in ("mixed_bfloat16", "mixed_float16"):
        ways[f"computed in {policy}"] = read_features(data / policy)[:2]
    print(f"{'':<28}{'normalize':<11}{'recall@' + str(k):>11}{'lowest':>9}{'median error':>15}")
    rows: list[list[object]] = []
    for normalize in ("none", "cosine"):
        scoring = Scoring(rates, k, normalize)
        exact = searched(test, train, scoring)[0]
        for name, (tests, trains) in ways.items():
            found = searched(tests, trains, scoring)[0]
            mean, lowest, error = compared(found, exact, len(test))
            print(f"{name:<28}{normalize:<11}{mean:>11.4f}{lowest:>9.2f}{error:>15.1e}", flush=True)
            rows.append([name, normalize, round(mean, 4), round(lowest, 2), f"{error:.1e}"])
    columns = ["", "normalize", f"recall@{k}", "lowest", "median error"]
    results.record("precision", "fashion", columns, rows)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("directory", nargs="?", metavar="DIR")
    parser.add_argument("--k", type=int, default=50)
    args = results.parse_args(parser)
    with tempfile.TemporaryDirectory() as temporary:
        data = pathlib.Path(args.directory or temporary)
        try:
            in_own_process(fashion_mnist.prepare, data)
        except FileNotFoundError as error:
            sys.exit(str(error))
        run(command("influence", *influence_flags(data, data / "out", args.k)))
        for policy in ("mixed_bfloat16", "mixed_float16"):
            for checkpoint in sorted((data / "checkpoints").glob("*.keras")):
                in_own_process(lower, checkpoint, policy, data / f"checkpoints-{policy}")
            flags = influence_flags(data, data / policy, args.k)
            run(
                command(
                    "influence",
                    *(flag.replace("/checkpoints/", f"/checkpoints-{policy}/") for flag in flags),
                )
            )
        in_own_process(report, data, args.k)


if __name__ == "__main__":
    main()
