"""Peak memory of `tracin score` or `tracin audit` against the number of training examples.

    python -m benchmarks.memory [--command=score] [--memory_gb=0.6] [--tests=500]
    python -m benchmarks.memory --command=audit

Writes synthetic feature sets of Fashion-MNIST's shape (6 checkpoints, C = 10, D = 129) with 25,000,
100,000 and 400,000 training examples (62,500, 250,000 and 1,000,000 for an audit), runs the whole
command on them and prints each peak and its ratio to the first, and seconds likewise.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import results
from benchmarks.feature_sets import write_set
from benchmarks.measure import command, run

if TYPE_CHECKING:
    from transforms.core.features import Features

SIZES = {"score": (25_000, 100_000, 400_000), "audit": (62_500, 250_000, 1_000_000)}
CHECKPOINTS, CLASSES, UNITS = 6, 10, 129
EXAMPLES_PER_FILE = 5000


def draw(rng: np.random.Generator, n: int, first: int) -> Features:
    """Heavy-tailed random gradients, ids counted from `first`."""
    from transforms.core.features import Features

    labels = rng.integers(0, CLASSES, (n, 1))
    loss_grads = rng.normal(size=(n, CHECKPOINTS, CLASSES)) * np.exp(2 * rng.normal(size=(n, 1, 1)))
    activations = np.maximum(rng.normal(size=(n, CHECKPOINTS, UNITS)), 0)
    ids = [b"%07d" % (first + i) for i in range(n)]
    return Features.of(
        ids, labels, labels, np.ones(n), np.ones((n, CHECKPOINTS)), loss_grads, activations
    )


def write(directory: pathlib.Path, examples: int, seed: int) -> None:
    """Writes a committed feature set."""
    rng, starts = np.random.default_rng(seed), range(0, examples, EXAMPLES_PER_FILE)
    parts = (draw(rng, min(EXAMPLES_PER_FILE, examples - first), first) for first in starts)
    write_set(directory, parts, f"{seed}-{examples}", examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", choices=tuple(SIZES), default="score")
    parser.add_argument("--memory_gb", type=float, default=0.6)
    parser.add_argument("--tests", type=int, default=500)
    args = results.parse_args(parser)
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        write(directory / "test", args.tests, 1)
        first, rows = None, []
        for size in SIZES[args.command]:
            features, output = directory / str(size), f"--output={directory}/out-{size}"
            write(features, size, 2)
            if args.command == "score":
                sets = [f"--train_features={features}", f"--test_features={directory / 'test'}"]
                measured = run(
                    command("score", *sets, output, "--k=50", f"--memory_gb={args.memory_gb}")
                )
            else:
                measured = run(command("audit", f"--features={features}", output))
            first = first or measured
            stored = sum(path.stat().st_size for path in features.iterdir())
            peak, seconds = measured.peak_bytes, measured.seconds
            print(
                f"{size:>9,} training examples ({stored / 1e9:.2f} GB stored): peak "
                f"{peak / 1e9:.2f} GB, {peak / first.peak_bytes:.2f} of "
                f"the first; {seconds:.0f} s, {seconds / first.seconds:.1f} of the first",
                flush=True,
            )
            rows.append([size, round(stored / 1e9, 2), round(peak / 1e9, 2), round(seconds)])
        columns = ["training examples", "stored GB", "peak GB", "s"]
        results.record("memory", args.command, columns, rows)


if __name__ == "__main__":
    main()
