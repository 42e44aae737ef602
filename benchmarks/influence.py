"""`tracin influence` on Fashion-MNIST: 60,000 × 10,000 examples, 6 checkpoints, both signs, whole commands.

    python -m benchmarks.influence [DIR] [--k=50] [--runs=3]

Prints wall time, peak memory and pairs/s of the command and of its two halves, each beside a reference measured in the same run: the
bare forward pass of all checkpoints over the same tensors in memory, and the machine's best float32 matrix multiply. Machines are
noisy: quote the ratios. DIR keeps the prepared data (a temporary directory otherwise).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from benchmarks import fashion_mnist

UNITS, CLASSES = 129, 10  # the bias's 1 counted


@dataclasses.dataclass(frozen=True)
class Measured:
    """A command that ended: wall seconds, peak resident bytes, what it printed."""

    seconds: float
    peak_bytes: int
    out: str


def run(words: Sequence[str]) -> Measured:
    """Runs a command as a process of its own and measures it; ends the program if it fails."""
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{text}")
    return Measured(seconds, usage.ru_maxrss * 1024, text)


def command(*words: str) -> list[str]:
    """A `tracin` command of this environment."""
    return [sys.executable, "-m", "pipeline.cli", *words]


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
    """Seconds of the bare forward passes of all checkpoints over all 70,000 images in memory, in one tf.function."""
    import keras
    import numpy as np
    import tensorflow as tf

    images = np.concatenate([fashion_mnist.load(part)[0] for part in ("train", "t10k")])[..., None].astype(np.float32) / 255
    models = [keras.models.load_model(path, compile=False) for path in sorted((data / "checkpoints").glob("*.keras"))]

    @tf.function
    def forward(batch: tf.Tensor) -> list[tf.Tensor]:
        return [model(batch, training=False) for model in models]

    batches = [tf.constant(images[i : i + 256]) for i in range(0, len(images) - 256, 256)]

    def all_batches() -> None:
        for batch in batches:
            forward(batch)

    return median_seconds(all_batches, 3)


def matmul_gflops() -> float:
    """The machine's best float32 matrix multiply, in Gflop/s."""
    import tensorflow as tf

    a, b = tf.random.normal((2048, 2048)), tf.random.normal((2048, 2048))
    return 2 * 2048**3 / min(timed(lambda: tf.matmul(a, b).numpy()) for _ in range(12)) / 1e9


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """Median seconds of some calls, after one to warm up."""
    work()
    return statistics.median(timed(work) for _ in range(runs))


def dense_seconds(features: pathlib.Path, k: int) -> float:
    """Seconds of scoring alone: features decoded in memory → top-k arrays."""
    from pipeline.score import read_set
    from transforms.kernels import Scoring, Search
    from transforms.tiles import spans

    sets = {name: read_set(str(features / f"{name}_features"), "features") for name in ("test", "train")}
    arrays = {name: one.read(spans(one.counts, 0, sum(one.counts))) for name, one in sets.items()}
    scoring = Scoring(tuple(rate for rate in sets["train"].manifest.learning_rates if rate), k)

    def score() -> None:
        search = Search(arrays["test"], scoring)
        for _ in search.scan(arrays["train"]):
            pass
        search.result()

    return median_seconds(score, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=pathlib.Path)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if not fashion_mnist.available():
        sys.exit(fashion_mnist.MISSING)
    with tempfile.TemporaryDirectory() as scratch:
        data = args.directory or pathlib.Path(scratch) / "data"
        fashion_mnist.prepare(data)
        report(data, pathlib.Path(scratch), args.k, args.runs)


def report(data: pathlib.Path, scratch: pathlib.Path, k: int, runs: int) -> None:
    """Measures and prints."""
    from pipeline.score import read_set

    output = scratch / "out"
    whole, halves = [], {"features": [], "score": []}
    for i in range(runs):
        shutil.rmtree(output, ignore_errors=True)
        whole.append(run(command("influence", *influence_flags(data, output, k))))
        checkpoints = f"--checkpoints={data}/checkpoints/*.keras"
        halves["features"].append(
            run(command("features", f"--examples={data}/examples/t*", checkpoints, f"--output={scratch}/features-{i}", "--id_key=id"))
        )
        sets = [f"--train_features={output}/train_features", f"--test_features={output}/test_features"]
        halves["score"].append(run(command("score", *sets, f"--output={scratch}/score-{i}", f"--k={k}")))
    tests, trains = (read_set(str(output / f"{name}_features"), "features").manifest.examples for name in ("test", "train"))
    pairs = tests * trains
    flops = 2 * fashion_mnist.CHECKPOINTS * (CLASSES + UNITS)
    forward, gflops, dense = forward_seconds(data), matmul_gflops(), dense_seconds(output, k)
    limit = gflops * 1e9 / flops

    def told(name: str, measured: Sequence[Measured]) -> None:
        inside = [float(found.group(1)) for one in measured if (found := re.search(r"took ([\d.]+) s", one.out))]
        print(
            f"{name:<20} {statistics.median(one.seconds for one in measured):6.1f} s wall, "
            f"{statistics.median(inside):6.1f} s after imports, {max(one.peak_bytes for one in measured) / 1e9:.2f} GB peak"
        )

    print(f"Fashion-MNIST {trains:,} x {tests:,}, {fashion_mnist.CHECKPOINTS} checkpoints, top-{k}, medians of {runs} runs")
    told("tracin influence", whole)
    told("tracin features", halves["features"])
    told("tracin score", halves["score"])
    seconds = statistics.median(one.seconds for one in whole)
    print(f"whole command        {pairs / seconds / 1e6:6.1f} M pairs/s")
    extraction = statistics.median(one.seconds for one in halves["features"])
    print(f"bare forward passes  {forward:6.1f} s; {forward / extraction:.2f} of the whole `tracin features`")
    print(f"scoring alone        {pairs / dense / 1e6:6.1f} M pairs/s; {pairs / dense / limit:.2f} of the brute-force limit")
    print(f"brute-force limit    {limit / 1e6:6.1f} M pairs/s ({gflops:.0f} Gflop/s of matrix multiply over {flops} flops a pair)")


if __name__ == "__main__":
    main()
