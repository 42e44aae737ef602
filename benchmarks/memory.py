"""Peak memory of `tracin score` against the number of training examples, at one memory budget.

    python -m benchmarks.memory [--memory_gb=0.6] [--tests=500]

Writes synthetic feature sets of Fashion-MNIST's shape (6 checkpoints, C = 10, D = 129) with 25,000, 100,000 and 400,000 training
examples, scores them by the whole command and prints each peak and its ratio to the first.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import numpy as np

from benchmarks.measure import command, run

SIZES = (25_000, 100_000, 400_000)
CHECKPOINTS, CLASSES, UNITS = 6, 10, 129


def write_set(directory: pathlib.Path, examples: int, seed: int) -> None:
    """Writes a committed feature set of heavy-tailed random gradients."""
    from transforms import files, manifest, records, tfrecords
    from transforms.manifest import FeatureManifest
    from transforms.records import Features, Origin

    rng = np.random.default_rng(seed)
    written = []
    for start in range(0, examples, 5000):
        n = min(5000, examples - start)
        labels = rng.integers(0, CLASSES, (n, 1))
        loss_grads = rng.normal(size=(n, CHECKPOINTS, CLASSES)) * np.exp(2 * rng.normal(size=(n, 1, 1)))
        activations = np.maximum(rng.normal(size=(n, CHECKPOINTS, UNITS)), 0)
        ids = [f"{start + i:07d}" for i in range(n)]
        part = Features.of(ids, labels, labels, np.ones(n), np.ones((n, CHECKPOINTS)), loss_grads, activations)
        payloads = records.encode(part, [Origin("synthetic", start + i, b"") for i in range(n)])
        written.append(files.write(str(directory), f"features-{start:07d}.tfrecord", tfrecords.join_frames(payloads), n))
    manifest.write(
        str(directory),
        FeatureManifest(
            kind="features",
            fingerprint=f"{seed}-{examples}",
            settings={},
            files=tuple(written),
            counts={"examples": examples},
            model_fingerprint="synthetic",
            task="class",
            outputs=CLASSES,
            units=UNITS,
            checkpoints=tuple(f"{t}" for t in range(CHECKPOINTS)),
            learning_rates=(0.1,) * CHECKPOINTS,
            rejected_files=(),
            rejected={},
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory_gb", type=float, default=0.6)
    parser.add_argument("--tests", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        write_set(directory / "test", args.tests, 1)
        first = 0
        for size in SIZES:
            write_set(directory / str(size), size, 2)
            sets = [f"--train_features={directory / str(size)}", f"--test_features={directory / 'test'}"]
            measured = run(command("score", *sets, f"--output={directory}/out-{size}", "--k=50", f"--memory_gb={args.memory_gb}"))
            first = first or measured.peak_bytes
            stored = sum(path.stat().st_size for path in (directory / str(size)).iterdir())
            print(
                f"{size:>8,} training examples ({stored / 1e9:.2f} GB stored): peak {measured.peak_bytes / 1e9:.2f} GB, "
                f"{measured.peak_bytes / first:.2f} of the first"
            )


if __name__ == "__main__":
    main()
