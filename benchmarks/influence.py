"""`tracin influence` on Fashion-MNIST: 60,000 × 10,000 examples, 6 checkpoints, both signs, whole
commands.

    python -m benchmarks.influence [DIR] [--k=50] [--runs=3]

Prints wall time, peak memory and pairs/s of the command and of its two halves, each beside a
reference measured in the same run: the bare forward pass of all checkpoints over the same tensors
in memory, and the machine's best float32 matrix multiply. Machines are noisy: quote the ratios. DIR
keeps the prepared data (a temporary directory otherwise).
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence

from benchmarks import fashion_mnist, results
from benchmarks.measure import (
    Measured,
    command,
    matmul_gflops,
    median_seconds,
    read_features,
    run,
    searched,
)

UNITS, CLASSES = 129, 10  # the bias's 1 counted


def influence_flags(data: pathlib.Path, output: pathlib.Path, k: int) -> list[str]:
    """The flags of the whole run."""
    return [
        f"--train_examples={data}/examples/train-*",
        f"--test_examples={data}/examples/test-*",
        f"--checkpoints={data}/checkpoints/*.keras",
        f"--output={output}",
        "--id_key=id",
        f"--k={k}",
    ]


def forward_seconds(data: pathlib.Path) -> float:
    """Seconds of the bare forward passes of all checkpoints over all 70,000 images in memory, in
    one tf.function.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    images = (
        np.concatenate([fashion_mnist.load(part)[0] for part in ("train", "t10k")])[
            ..., None
        ].astype(np.float32)
        / 255
    )
    models = [
        keras.models.load_model(path, compile=False)
        for path in sorted((data / "checkpoints").glob("*.keras"))
    ]

    @tf.function
    def forward(batch: tf.Tensor) -> list[tf.Tensor]:
        return [model(batch, training=False) for model in models]

    batches = [tf.constant(images[i : i + 256]) for i in range(0, len(images) - 256, 256)]

    def all_batches() -> None:
        for batch in batches:
            forward(batch)

    return median_seconds(all_batches, 3)


def search_seconds(output: pathlib.Path, k: int) -> float:
    """Seconds of scoring alone: features decoded in memory → top-k arrays."""
    from transforms.scoring.influence import Scoring

    test, train, rates = read_features(output)
    return median_seconds(lambda: searched(test, train, Scoring(rates, k)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=pathlib.Path)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    args = results.parse_args(parser)
    if not fashion_mnist.available():
        sys.exit(fashion_mnist.MISSING)
    with tempfile.TemporaryDirectory() as scratch:
        data = args.directory or pathlib.Path(scratch) / "data"
        fashion_mnist.prepare(data)
        report(data, pathlib.Path(scratch), args.k, args.runs)


def report(data: pathlib.Path, scratch: pathlib.Path, k: int, runs: int) -> None:
    """Measures and prints."""
    from transforms.storage.read_feature_set import read_feature_set

    output = scratch / "out"
    whole, halves = [], {"features": [], "score": []}
    for i in range(runs):
        shutil.rmtree(output, ignore_errors=True)
        whole.append(run(command("influence", *influence_flags(data, output, k))))
        checkpoints = f"--checkpoints={data}/checkpoints/*.keras"
        halves["features"].append(
            run(
                command(
                    "features",
                    f"--examples={data}/examples/t*",
                    checkpoints,
                    f"--output={scratch}/features-{i}",
                    "--id_key=id",
                )
            )
        )
        sets = [
            f"--train_features={output}/train_features",
            f"--test_features={output}/test_features",
        ]
        halves["score"].append(
            run(command("score", *sets, f"--output={scratch}/score-{i}", f"--k={k}"))
        )
    tests, trains = (
        read_feature_set(str(output / f"{name}_features"), "features").manifest.examples
        for name in ("test", "train")
    )
    pairs = tests * trains
    flops = 2 * fashion_mnist.CHECKPOINTS * (CLASSES + UNITS)
    forward, gflops, search = forward_seconds(data), matmul_gflops(), search_seconds(output, k)
    limit = gflops * 1e9 / flops

    def told(name: str, measured: Sequence[Measured]) -> None:
        inside = [
            float(found.group(1))
            for one in measured
            if (found := re.search(r"took ([\d.]+) s", one.out))
        ]
        print(
            f"{name:<20} {statistics.median(one.seconds for one in measured):6.1f} s wall, "
            f"{statistics.median(inside):6.1f} s after imports, "
            f"{max(one.peak_bytes for one in measured) / 1e9:.2f} GB peak"
        )

    print(
        f"Fashion-MNIST {trains:,} x {tests:,}, {fashion_mnist.CHECKPOINTS} checkpoints, top-{k}, "
        f"medians of {runs} runs"
    )
    told("tracin influence", whole)
    told("tracin features", halves["features"])
    told("tracin score", halves["score"])
    results.record(
        "influence",
        "commands",
        ["command", "wall s", "peak GB"],
        [
            [
                f"tracin {name}",
                round(statistics.median(one.seconds for one in measured), 1),
                round(max(one.peak_bytes for one in measured) / 1e9, 1),
            ]
            for name, measured in (("influence", whole), *halves.items())
        ],
    )
    seconds = statistics.median(one.seconds for one in whole)
    print(f"whole command        {pairs / seconds / 1e6:6.1f} M pairs/s")
    extraction = statistics.median(one.seconds for one in halves["features"])
    print(
        f"bare forward passes  {forward:6.1f} s; {forward / extraction:.2f} of the whole `tracin "
        "features`"
    )
    print(
        f"scoring alone        {pairs / search / 1e6:6.1f} M pairs/s; {pairs / search / limit:.2f} "
        "of the brute-force limit"
    )
    print(
        f"brute-force limit    {limit / 1e6:6.1f} M pairs/s ({gflops:.0f} Gflop/s of matrix "
        f"multiply over {flops} flops a pair)"
    )


if __name__ == "__main__":
    main()
