"""Scoring, features decoded in memory → top-k arrays, against the dense path and against what brute
force could do at best.

    python -m benchmarks.scoring [DIR] [--trains=N] [--tests=N] [--dense_tests=N] [--k=50]
        [--workload=fashion|imagenet|equal-fashion|equal-imagenet|all] [--runs=3] [--parts=8]
        [--plots=FILE] [--results=benchmarks/results]

Workloads:

    fashion         60,000 × 10,000 examples of Fashion-MNIST, 6 checkpoints, C = 10, D = 128;
                    and the whole `tracin score` in parts
    imagenet        100,000 × 10,000 of `benchmarks.imagenet_like`, 3 checkpoints, C = 1000,
                    D = 2048; needs 16 GB
    equal-fashion   60,000 × 10,000 of the first shape, and
    equal-imagenet  100,000 × 10,000 of the second, where no bound separates pairs: equal norms,
                    random directions, cosine

Both paths run by turns, so that a busy machine is busy for both, and their results must be
identical in ids and in the bits of scores. The dense path may have fewer test examples
(`--dense_tests`; 1,000 for imagenet): compared are pairs/s. The brute-force limit is the machine's
best float32 matrix multiply, measured before and after, over the `2 T (C + D + 1)` flops of a pair.
Machines are noisy: quote the ratios. `--parts` searches the training set in so many parts too, as
tiles on different workers do: each for itself, by thresholds estimated from the first, and by those
of the whole set. `--plots` draws the cost on Fashion-MNIST against the numbers of examples
and k, which takes ten minutes and more. DIR keeps its data (a temporary directory otherwise).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import pickle
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import fashion_mnist, imagenet_like, results
from benchmarks.influence import influence_flags
from benchmarks.measure import (
    Others,
    command,
    in_own_process,
    matmul_gflops,
    median_seconds,
    peak_bytes,
    read_features,
    resident_bytes,
    run,
    searched,
    timed,
)

if TYPE_CHECKING:
    from transforms.core.features import Features
    from transforms.core.topk import TopK

K_POINTS = (1, 10, 50, 200, 1000)
INK, GREY, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f6fb4", "#d9730d"


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is scored.

    Attributes:
        trains, tests: numbers of examples.
        dense_tests: how many of the tests the dense path has.
        load: makes the test and training features and the learning rates, from the directory of
            data and both numbers.
        normalize: see `Scoring`.
    """

    trains: int
    tests: int
    dense_tests: int
    load: Callable[[pathlib.Path, int, int], tuple[Features, Features, tuple[float, ...]]]
    normalize: str = "none"


def load_fashion(
    data: pathlib.Path, trains: int, tests: int
) -> tuple[Features, Features, tuple[float, ...]]:
    test, train, rates = read_features(data / "out")
    return test.take(slice(tests)), train.take(slice(trains)), rates


def load_imagenet(
    _: pathlib.Path, trains: int, tests: int
) -> tuple[Features, Features, tuple[float, ...]]:
    return (
        imagenet_like.features(tests, train=False),
        imagenet_like.features(trains),
        imagenet_like.LEARNING_RATES,
    )


def load_equal(
    _: pathlib.Path, trains: int, tests: int, checkpoints: int, outputs: int, units: int
) -> tuple[Features, Features, tuple[float, ...]]:
    """Features whose loss gradients and activations all have length 1, at all checkpoints, and
    random directions.
    """
    from transforms.core.features import Features
    from transforms.core.ids import id_array
    from transforms.core.summation import norms

    def draw(n: int, stem: str, seed: int) -> Features:
        rng = np.random.default_rng(seed)
        factors, lengths = [], []
        for width in (outputs, units):
            array = np.empty((n, checkpoints, width), np.float32)
            length = np.empty((n, checkpoints))
            for start in range(0, n, 1000):
                rows = slice(start, start + 1000)
                drawn = rng.standard_normal(array[rows].shape, dtype=np.float32)
                array[rows] = drawn / norms(drawn)[..., None]
                length[rows] = norms(array[rows])
            factors.append(array)
            lengths.append(length)
        ids = id_array([f"{stem}-{i:06d}".encode() for i in range(n)])
        labels, predictions = rng.integers(0, outputs, (2, n, 1))
        chance = np.float32(1 / outputs)
        return Features(
            ids,
            labels,
            predictions,
            np.full(n, chance),
            np.full((n, checkpoints), chance),
            *factors,
            *lengths,
        )

    return draw(tests, "test", 1), draw(trains, "train", 0), (0.1,) * checkpoints


equal_fashion = functools.partial(load_equal, checkpoints=6, outputs=10, units=129)
equal_imagenet = functools.partial(load_equal, checkpoints=3, outputs=1000, units=2049)

WORKLOADS = {
    "fashion": Workload(60_000, 10_000, 10_000, load_fashion),
    "imagenet": Workload(100_000, 10_000, 1_000, load_imagenet),
    "equal-fashion": Workload(60_000, 10_000, 10_000, equal_fashion, "cosine"),
    "equal-imagenet": Workload(100_000, 10_000, 10_000, equal_imagenet, "cosine"),
}


@dataclasses.dataclass(frozen=True)
class Compared:
    """What a workload came to: pairs/s of our path, of the dense path and of the limit, seconds of
    our path, and its peak memory.
    """

    name: str
    shape: str
    ours: float
    dense: float
    limit: float
    seconds: float
    peak_bytes: int

    def row(self) -> str:
        """A line of a Markdown table."""
        rates = " | ".join(f"{rate / 1e6:,.1f}" for rate in (self.ours, self.dense, self.limit))
        ratios = " | ".join(
            f"{one / other:.2f}"
            for one, other in (
                (self.ours, self.limit),
                (self.ours, self.dense),
                (self.dense, self.limit),
            )
        )
        return (
            f"| {self.name} | {self.shape} | {rates} | {ratios} | {self.peak_bytes / 1e9:.1f} GB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "directory",
        nargs="?",
        type=pathlib.Path,
        help="where Fashion-MNIST's examples, checkpoints and features are kept",
    )
    parser.add_argument("--workload", choices=(*WORKLOADS, "all"), default="all")
    parser.add_argument("--trains", type=int, help="training examples")
    parser.add_argument("--tests", type=int, help="test examples")
    parser.add_argument("--dense_tests", type=int, help="test examples of the dense path")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--parts", type=int, help="parts of the training set that are searched apart"
    )
    parser.add_argument(
        "--plots", type=pathlib.Path, nargs="?", const=pathlib.Path("scoring.png"), metavar="FILE"
    )
    args = results.parse_args(parser)
    names = list(WORKLOADS) if args.workload == "all" else [args.workload]
    if args.plots and "fashion" not in names:
        parser.error("--plots are of the workload fashion")
    if "fashion" in names and not fashion_mnist.available():
        sys.exit(fashion_mnist.MISSING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as scratch:
        data = args.directory or pathlib.Path(scratch)
        if "fashion" in names:
            prepare(data, args.k)
        rows = []
        for name in names:
            usual = WORKLOADS[name]
            trains, tests = args.trains or usual.trains, args.tests or usual.tests
            dense_tests = min(args.dense_tests or usual.dense_tests, tests)
            workload = dataclasses.replace(
                usual, trains=trains, tests=tests, dense_tests=dense_tests
            )
            compared = in_own_process(compare, name, workload, data, args.k, args.runs)
            rows.append(compared.row())
            if args.parts:
                in_own_process(report_parts, workload, data, args.k, args.parts)
            if name == "fashion":
                report_command(data, pathlib.Path(scratch), args.k, args.runs)
                if args.plots:
                    in_own_process(plot, data, trains, tests, args.k, args.runs, args.plots)
    print(
        "| | | ours, M pairs/s | dense path | brute-force limit | ours / limit | ours / dense | "
        "dense / limit | peak memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def prepare(data: pathlib.Path, k: int) -> None:
    """Leaves the feature sets of Fashion-MNIST in `data`/out, unless a run before has."""
    in_own_process(fashion_mnist.prepare, data)
    if not all(
        (data / "out" / f"{name}_features" / "manifest.json").exists() for name in ("train", "test")
    ):
        run(command("influence", *influence_flags(data, data / "out", k)))


def compare(name: str, workload: Workload, data: pathlib.Path, k: int, runs: int) -> Compared:
    """Measures a workload and prints what it comes to; ends the program if the two paths differ."""
    from transforms.scoring.influence import Scoring

    test, train, rates = workload.load(data, workload.trains, workload.tests)
    dense_test = test.take(slice(workload.dense_tests))
    scoring = Scoring(rates, k, workload.normalize)
    held = resident_bytes()
    _, checkpoints, outputs = train.loss_grads.shape
    units = train.activations.shape[2]
    shape = f"{len(train):,} × {len(test):,}, T = {checkpoints}, C = {outputs}, D = {units - 1}"
    print(
        f"{name}: {shape}, top-{k}, normalize={workload.normalize}, {os.cpu_count()} processors, "
        f"medians of {runs} runs",
        flush=True,
    )

    found: dict[bool, tuple[TopK, dict[str, int]]] = {}

    def search(dense: bool) -> None:
        found[dense] = searched(dense_test if dense else test, train, scoring, dense)

    ours, dense = functools.partial(search, False), functools.partial(search, True)
    peaks = peak_bytes(ours), peak_bytes(dense)  # and to warm up
    differing = difference(found[False][0], found[True][0], len(dense_test))
    if differing:
        raise SystemExit(f"{name}: {differing}")
    gflops = matmul_gflops()
    with Others() as others:
        seconds = [(timed(ours), timed(dense)) for _ in range(runs)]
    gflops = max(gflops, matmul_gflops())

    flops = 2 * checkpoints * (outputs + units)
    pairs, dense_pairs = len(test) * len(train), len(dense_test) * len(train)
    our_seconds, dense_seconds = (
        statistics.median(column) for column in zip(*seconds, strict=True)
    )
    compared = Compared(
        name,
        shape,
        pairs / our_seconds,
        dense_pairs / dense_seconds,
        gflops * 1e9 / flops,
        our_seconds,
        peaks[0],
    )
    ranked = sum(len(ranking) for ranking in (found[True][0].proponents, found[True][0].opponents))

    def told(path: str, rate: float, took: float, peak: int) -> None:
        print(
            f"  {path:<20}{rate / 1e6:10,.1f} M pairs/s {took:8.2f} s, peak {peak / 1e9:.2f} GB of "
            f"which {held / 1e9:.2f} before it"
        )

    results.record(
        "scoring",
        name,
        ["shape", "M pairs/s", "every product made", "brute-force limit", "of the limit"],
        [
            [
                shape,
                round(compared.ours / 1e6, 1),
                round(compared.dense / 1e6, 1),
                round(compared.limit / 1e6, 1),
                round(compared.ours / compared.limit, 2),
            ]
        ],
    )
    told("ours", compared.ours, our_seconds, peaks[0])
    told(f"dense, {len(dense_test):,} tests", compared.dense, dense_seconds, peaks[1])
    print(
        f"  {'brute-force limit':<20}{compared.limit / 1e6:10,.1f} M pairs/s: {gflops:,.0f} "
        f"Gflop/s over {flops:,} flops a pair"
    )
    print(
        f"  ours / limit {compared.ours / compared.limit:.2f}, ours / dense "
        f"{compared.ours / compared.dense:.2f}, "
        f"dense / limit {compared.dense / compared.limit:.2f}; other processes had "
        f"{others.share:.0%} of the processors"
    )
    print(f"  identical in {len(dense_test):,} tests: {ranked:,} ids and the bits of their scores")
    print(f"  counts, and parts of all {pairs:,} pairs:")
    for what, count in found[False][1].items():
        print(f"    {what:<32}{count:>18,}{count / pairs:>12.6f}")
    print(flush=True)
    return compared


def report_parts(workload: Workload, data: pathlib.Path, k: int, parts: int) -> None:
    """Prints what it costs to search a training set in parts that know nothing of each other, or
    what thresholds tell.
    """
    from transforms.core import topk
    from transforms.scoring import thresholds
    from transforms.scoring.influence import Scoring
    from transforms.scoring.search.exact_search import ExactSearch

    test, train, rates = workload.load(data, workload.trains, workload.tests)
    scoring, n, size = Scoring(rates, k, workload.normalize), len(test), -(-len(train) // parts)
    ranges = [train.take(slice(start, start + size)) for start in range(0, len(train), size)]

    def search(features: Features, floors: np.ndarray | None = None) -> tuple[float, TopK]:
        searched = ExactSearch(test, scoring, floors=floors)
        seconds = timed(lambda: list(searched.scan(features)))
        return seconds, searched.result()

    def told(name: str, found: Sequence[tuple[float, TopK]], more: str = "") -> None:
        candidates = sum(len(best.proponents) + len(best.opponents) for _, best in found)
        print(
            f"  {name:<30}{sum(seconds for seconds, _ in found):8.2f} s {candidates:>12,} "
            f"candidates{more}",
            flush=True,
        )

    search(train)  # to warm up
    whole = search(train)
    apart = [search(part) for part in ranges]
    estimates = thresholds.estimated(apart[0][1], n, k, len(ranges[0]) / len(train))
    estimated = [apart[0], *(search(part, estimates) for part in ranges[1:])]
    merged = topk.merge([best for _, best in estimated], k)
    again = len(thresholds.unproven(merged, n, k, estimates))
    if not again and difference(merged, whole[1], n):
        raise SystemExit(f"in parts: {difference(merged, whole[1], n)}")
    true = thresholds.proven(whole[1], n, k)
    print(f"in {parts} parts, one after the other")
    results.record(
        "scoring",
        f"{parts}-parts",
        ["thresholds", "over the whole set"],
        [
            [name, round(sum(took for took, _ in found) / whole[0], 1)]
            for name, found in (("each part's own", apart), ("estimated from the first", estimated))
        ],
    )
    told("the whole set", [whole])
    told("each for itself", apart)
    told(
        "estimated from the first", estimated, f"; {again:,} of {n:,} tests would be searched again"
    )
    told("true thresholds", [search(part, true) for part in ranges])
    print(flush=True)


def difference(ours: TopK, dense: TopK, tests: int) -> str | None:
    """Where the first `tests` tests of our result are not the dense one, in ids or in the bits of
    scores.
    """
    for sign in ("proponents", "opponents"):
        one, other = getattr(ours, sign), getattr(dense, sign)
        one = one.take(one.rows < tests)
        if not np.array_equal(one.rows, other.rows):
            return f"the two paths find different numbers of {sign}"
        for field in ("ids", "scores"):
            mine, its = getattr(one, field), getattr(other, field)
            # Bits: −0 is not 0 here.
            differing = np.flatnonzero(
                mine != its if field == "ids" else mine.view(np.int64) != its.view(np.int64)
            )
            if len(differing):
                place = differing[0]
                row = one.rows[place]
                rank = place - np.searchsorted(one.rows, row)
                return (
                    f"the two paths differ in the {field} of {sign}: {mine[place]} and "
                    f"{its[place]} at test {row}, rank {rank}"
                )
    return None


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of `tracin score`, each alone: seconds; and how many records, rows and bytes they
    are of.
    """

    reading: float
    scoring: float
    writing: float
    records: int
    rows: int
    block_bytes: int


def measure_parts(output: pathlib.Path, scratch: pathlib.Path, k: int, runs: int) -> Parts:
    """Measures reading all features, scoring them and writing the rows, each alone."""
    from transforms.influence.records import RecordScoring
    from transforms.influence.rows import write_rows
    from transforms.scoring.influence import Scoring
    from transforms.storage.read_feature_set import read_feature_set

    test, train, rates = read_features(output)
    reading = median_seconds(lambda: read_features(output), runs)
    scoring = Scoring(rates, k)
    seconds = median_seconds(lambda: searched(test, train, scoring), runs)
    best, _ = searched(test, train, scoring)
    protocol = RecordScoring()
    block = protocol.block(test, best, scoring)
    manifest = read_feature_set(str(output / "train_features"), "train_features").manifest
    rows = protocol.schema(manifest.task, manifest.outputs)
    writing = median_seconds(lambda: write_rows(str(scratch), 0, [(0, block)], rows), runs)
    size = len(pickle.dumps(block, pickle.HIGHEST_PROTOCOL))
    return Parts(reading, seconds, writing, len(test) + len(train), len(test), size)


def report_command(data: pathlib.Path, scratch: pathlib.Path, k: int, runs: int) -> None:
    """Prints the whole `tracin score` and its parts."""
    parts = in_own_process(measure_parts, data / "out", scratch, k, runs)
    sets = [
        f"--train_features={data}/out/train_features",
        f"--test_features={data}/out/test_features",
    ]
    whole = [
        run(command("score", *sets, f"--output={scratch}/score-{i}", f"--k={k}"))
        for i in range(runs)
    ]
    inside = statistics.median(float(re.findall(r"took ([\d.]+) s", one.out)[0]) for one in whole)
    # As the command does, which keeps the garbage collector away meanwhile.
    imports = (
        "import gc; gc.disable(); import pipeline.commands.score, tensorflow; "
        "tensorflow.config.list_physical_devices()"
    )
    start = statistics.median(run([sys.executable, "-c", imports]).seconds for _ in range(runs))
    together = parts.reading + parts.scoring + parts.writing
    seconds = statistics.median(one.seconds for one in whole)
    results.record(
        "scoring",
        "command",
        ["part", "s"],
        [
            ["reading", round(parts.reading, 2)],
            ["scoring", round(parts.scoring, 2)],
            ["writing", round(parts.writing, 2)],
            ["imports", round(start, 1)],
            ["the whole command", round(seconds, 1)],
        ],
    )
    print(f"tracin score on Fashion-MNIST, whole, top-{k}, medians of {runs} runs")
    print(
        f"  reading         {parts.reading:8.2f} s alone: {parts.records / parts.reading:,.0f} "
        "records/s, files in the system's cache"
    )
    print(f"  scoring         {parts.scoring:8.2f} s alone")
    print(
        f"  writing         {parts.writing:8.2f} s alone: {parts.rows:,} rows as JSON lines and as "
        "Parquet"
    )
    print(
        f"  together        {together:8.2f} s; the command takes {inside:.1f} s after its imports, "
        "Beam's graph included"
    )
    print(f"  imports         {start:8.2f} s")
    print(
        f"  command         {seconds:8.2f} s wall, peak "
        f"{max(one.peak_bytes for one in whole) / 1e9:.2f} GB"
    )
    print(
        f"  leaves a tile   {parts.block_bytes / 1e6:8.1f} MB, were all of it one tile: candidates "
        f"of {parts.rows:,} tests, pickled"
    )
    print(flush=True)


@dataclasses.dataclass(frozen=True)
class Panel:
    """Costs against one number, the other two being full: points of it, and seconds of our path, of
    the dense path and at the limit.
    """

    axis: str
    title: str
    points: Sequence[int]
    ours: Sequence[float]
    dense: Sequence[float]
    limit: Sequence[float]


def plot(
    data: pathlib.Path, trains: int, tests: int, k: int, runs: int, path: pathlib.Path
) -> None:
    """Measures and draws the cost on Fashion-MNIST against the number of training examples, of test
    examples and of k; prints it too.
    """
    import tensorflow as tf

    from transforms.scoring.influence import Scoring

    tf.get_logger().setLevel("ERROR")  # A new shape for each point is what it warns of.
    test, train, rates = load_fashion(data, trains, tests)
    flops = 2 * train.loss_grads.shape[1] * (train.loss_grads.shape[2] + train.activations.shape[2])
    limit = matmul_gflops() * 1e9 / flops

    def panel(axis: str, fixed: str, points: Sequence[int]) -> Panel:
        costs = []
        for point in points:
            some = test.take(slice(point)) if axis == "test examples" else test
            among = train.take(slice(point)) if axis == "training examples" else train
            scoring = Scoring(rates, point if axis == "k" else k)
            paths = [
                median_seconds(functools.partial(searched, some, among, scoring, dense), runs)
                for dense in (False, True)
            ]
            costs.append((*paths, len(some) * len(among) / limit))
            print(
                f"  {point:>7,} {axis:<18}" + " ".join(f"{cost:9.3f} s" for cost in costs[-1]),
                flush=True,
            )
        return Panel(axis, fixed, points, *zip(*costs, strict=True))

    print("cost on Fashion-MNIST: ours, dense path, brute-force limit")
    panels = [
        panel("training examples", f"{len(test):,} test examples, top-{k}", halves(len(train))),
        panel("test examples", f"{len(train):,} training examples, top-{k}", halves(len(test))),
        panel("k", f"{len(train):,} × {len(test):,} examples", K_POINTS),
    ]
    draw_panels(panels, path)
    print(f"drawn: {path}\n", flush=True)


def halves(n: int) -> list[int]:
    """Five numbers up to n, each half of the next."""
    return [max(1, n >> shift) for shift in range(4, -1, -1)]


def draw_panels(panels: Sequence[Panel], path: pathlib.Path) -> None:
    """Draws the panels side by side, with one scale of seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    with pyplot.rc_context(
        {"font.size": 11, "axes.edgecolor": GREY, "text.color": INK, "axes.labelcolor": INK}
    ):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(13, 4.6), sharey=True, layout="constrained"
        )
        for axis, one in zip(axes, panels, strict=True):
            axis.plot(
                one.points,
                one.limit,
                color=GREY,
                linestyle="--",
                linewidth=1.5,
                label="brute-force limit",
            )
            axis.plot(
                one.points, one.dense, color=ORANGE, marker="o", linewidth=2, label="dense path"
            )
            axis.plot(one.points, one.ours, color=BLUE, marker="o", linewidth=2, label="ours")
            axis.set(xscale="log", yscale="log", xlabel=one.axis, title=one.title)
            axis.title.set_size(11)
            axis.xaxis.set_major_locator(FixedLocator(one.points))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axis.grid(True, which="major", color="#e4e4e4")
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("seconds, features in memory → top-k arrays")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles[::-1], labels[::-1], loc="outside upper center", ncols=3, frameon=False
        )
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
