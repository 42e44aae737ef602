"""Vectors and indexes against the exact search: what compressed vectors find, and when an index is
worth having.

    python -m benchmarks.neighbours [DIR] [--workload=fashion|imagenet|all]
                                    [--part=vectors|indexes|all] [--k=50] [--runs=3]
                                    [--plots=FILE] [--results=benchmarks/results]

Workloads, features in memory:

    fashion     60,000 × 1,000 examples of Fashion-MNIST, 6 checkpoints, C = 10, D = 128
    imagenet    60,000 × 500 of `benchmarks.imagenet_like`, 3 checkpoints, C = 1000, D = 2048;
                needs 8 GB

`vectors`: for each method and number of dimensions, what part of the exact top k of both signs is
among the first k, 4 k and 8 k by the dot product of vectors, on average and in the worst test
example; seconds to fit, and to project all training examples.

`indexes`: for parts of the training set, for some of the checkpoints, and for 1, 100 and all test
examples, seconds of the exact search (the reference) and of each kind of index with 4 k candidates
of each sign scored exactly; the ratio of both; seconds to build; bytes; recall. Data is resident
for both; `benchmarks.scoring` measures reading. Machines are noisy: quote the ratios.
`--plots` draws the last workload's `indexes`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from benchmarks import fashion_mnist, results
from benchmarks.influence import influence_flags
from benchmarks.measure import command, in_own_process, run, searched
from benchmarks.scoring import load_fashion, load_imagenet

if TYPE_CHECKING:
    from transforms.core.features import Features
    from transforms.core.topk import TopK
    from transforms.vectors.projections.moments import Measurements
    from transforms.vectors.projections.projection import Projection, Scaling

_R = TypeVar("_R")

METHODS = ("auto", "principal", "sketch", "random")
DIMENSIONS = (64, 256, 512, 1024)
KINDS = ("flat", "ivf", "hnsw")
OVERSAMPLING = 4
SIZES = {"fashion": (60_000, 1_000), "imagenet": (60_000, 500)}
COLOURS = {"exact": "#222222", "flat": "#1f6fb4", "ivf": "#d9730d", "hnsw": "#3a9a5b"}


@dataclasses.dataclass(frozen=True)
class Point:
    """One index, or the exact search, for some numbers of examples."""

    kind: str
    trains: int
    checkpoints: int
    tests: int
    seconds: float
    build_seconds: float
    bytes: int
    recall: float


def load(name: str, data: pathlib.Path) -> tuple[Features, Features, tuple[float, ...]]:
    return (load_fashion if name == "fashion" else load_imagenet)(data, *SIZES[name])


def rows_of(best: TopK, train: Features, n: int) -> list[list[np.ndarray]]:
    """The training rows of each of n test examples' proponents, and of their opponents."""
    order = np.argsort(train.example_ids)
    lists = []
    for ranking in (best.proponents, best.opponents):
        rows = order[np.searchsorted(train.example_ids[order], ranking.ids)]
        borders = ranking.offsets(n)
        lists.append([rows[borders[i] : borders[i + 1]] for i in range(n)])
    return lists


def shares(near: np.ndarray, wanted: Sequence[Sequence[np.ndarray]], places: int) -> list[float]:
    """For each test example and sign, the part of its exact list that is among the first `places`
    of `near` [2, n, m].
    """
    return [
        len(np.intersect1d(rows, near[sign, i, :places])) / len(rows)
        for sign, lists in enumerate(wanted)
        for i, rows in enumerate(lists)
        if len(rows)
    ]


def make(method: str, scaling: Scaling, known: Measurements, dimensions: int) -> Projection:
    """A projection of one of `METHODS`."""
    from transforms.vectors.projections import methods

    if method in methods.FITTED:
        return methods.fit(method, scaling, known, dimensions, 0)
    outputs, units = (len(basis) for basis in known.bases[0])
    return (methods.random if method == "random" else methods.sketch)(
        scaling, outputs, units, dimensions, 0
    )


def compare_vectors(name: str, data: pathlib.Path, k: int) -> None:
    from transforms.scoring.influence import Scoring
    from transforms.vectors import faiss_index
    from transforms.vectors.projections.moments import Measurements
    from transforms.vectors.projections.projection import Scaling

    test, train, rates = load(name, data)
    wanted = rows_of(searched(test, train, Scoring(rates, k))[0], train, len(test))
    heads = "".join(f"{f'in {m * k}: mean':>14} lowest" for m in (1, 4, 8))
    print(
        f"\n{name}: {len(train):,} × {len(test):,}, top {k} of both "
        f"signs\n{'method':<11}numbers{heads}   fit s  project s  made of"
    )
    scaling = Scaling(rates, False)
    measuring, known = once(functools.partial(Measurements.of, train, scaling))
    print(f"measured for auto and principal in {measuring:.1f} s")
    rows: list[list[object]] = []
    for method in METHODS:
        for dimensions in DIMENSIONS:
            fitting, made = once(functools.partial(make, method, scaling, known, dimensions))
            projecting, vectors = once(functools.partial(made.project, train))
            near = faiss_index.nearest(
                faiss_index.build(vectors, "flat", 0), made.project(test), 8 * k
            )
            listed = [shares(near, wanted, m * k) for m in (1, 4, 8)]
            found = "".join(f"{np.mean(part):>14.4f} {min(part):>6.2f}" for part in listed)
            sketch = made.sketch.size if made.sketch else 0
            print(
                f"{method:<11}{made.dimensions:>7}{found}{fitting:>8.1f}{projecting:>11.1f}  "
                f"{made.kept} kept, {sketch} sketched",
                flush=True,
            )
            means = [round(float(np.mean(part)), 4) for part in listed]
            rows.append([method, made.dimensions, *means, f"{made.kept} + {sketch}"])
    heads = [f"in {m * k}" for m in (1, 4, 8)]
    columns = ["method", "numbers", *heads, "coordinates + sketch"]
    results.record("neighbours", f"{name}-vectors", columns, rows)


def compare_indexes(name: str, data: pathlib.Path, k: int, runs: int) -> list[Point]:
    from transforms.scoring.influence import Scoring
    from transforms.vectors import faiss_index
    from transforms.vectors.projections.moments import Measurements
    from transforms.vectors.projections.projection import Scaling

    tests, everything, all_rates = load(name, data)
    points = []
    print(
        f"\n{name}: top {k} of both signs, {OVERSAMPLING * k} candidates of each, vectors of 1,024 "
        "numbers"
    )
    print(
        f"{'training':>9}{'checkpoints':>12}{'tests':>7}  "
        f"{'kind':<7}{'seconds':>9}{'of exact':>10}{'build s':>9}{'MB':>8}{'recall':>9}"
    )
    most, last = len(everything), len(all_rates)
    for trains, checkpoints in (
        (most // 16, last),
        (most // 4, last),
        (most, 1),
        (most, (last + 1) // 2),
        (most, last),
    ):
        test, train, rates = (
            of_checkpoints(tests, checkpoints),
            of_checkpoints(everything.take(slice(trains)), checkpoints),
            all_rates[:checkpoints],
        )
        scoring, scaling = Scoring(rates, k), Scaling(rates, False)
        exact = checkpoints * train.loss_grads.shape[2] * train.activations.shape[2]
        projection = make("auto", scaling, Measurements.of(train, scaling), min(1024, exact))
        projecting, vectors = once(functools.partial(projection.project, train))
        indexes = {
            kind: once(functools.partial(faiss_index.build, vectors, kind, 0)) for kind in KINDS
        }
        for n in (1, 100, len(test)):
            some = test.take(slice(n))
            reference, (best, _) = median(functools.partial(searched, some, train, scoring), runs)
            wanted = rows_of(best, train, n)
            found = [Point("exact", trains, checkpoints, n, reference, 0.0, 0, 1.0)]
            for kind, (building, index) in indexes.items():
                seconds, best = median(
                    functools.partial(ask, some, train, index, projection, scoring), runs
                )
                size = len(faiss_index.to_bytes(index))
                found.append(
                    Point(
                        kind,
                        trains,
                        checkpoints,
                        n,
                        seconds,
                        projecting + building,
                        size,
                        recall(wanted, rows_of(best, train, n)),
                    )
                )
            for point in found:
                print(
                    f"{trains:>9,}{checkpoints:>12}{n:>7,}  "
                    f"{point.kind:<7}{point.seconds:>9.3f}{point.seconds / reference:>10.2f}"
                    f"{point.build_seconds:>9.1f}{point.bytes / 1e6:>8.0f}{point.recall:>9.4f}",
                    flush=True,
                )
            points += found
    results.record(
        "neighbours",
        f"{name}-indexes",
        ["test examples", "kind", "over exact", "recall", "s to build", "MB"],
        [
            [
                p.tests,
                p.kind,
                round(p.seconds / e.seconds, 2),
                round(p.recall, 3),
                round(p.build_seconds, 1),
                round(p.bytes / 1e6),
            ]
            for p in points
            for e in points
            if p.kind != "exact"
            and e.kind == "exact"
            and (e.trains, e.checkpoints, e.tests) == (p.trains, p.checkpoints, p.tests)
            and (p.trains, p.checkpoints) == (most, last)
        ],
    )
    return points


def recall(wanted: Sequence[Sequence[np.ndarray]], found: Sequence[Sequence[np.ndarray]]) -> float:
    """What part of the wanted rows was found, on average over test examples and signs."""
    pairs = [
        pair
        for one, other in zip(wanted, found, strict=True)
        for pair in zip(one, other, strict=True)
        if len(pair[0])
    ]
    return float(np.mean([len(np.intersect1d(*pair)) / len(pair[0]) for pair in pairs]))


def of_checkpoints(features: Features, checkpoints: int) -> Features:
    """The features at the first checkpoints alone."""
    cut = (
        "label_probabilities",
        "loss_grads",
        "activations",
        "loss_grad_norms",
        "activation_norms",
    )
    return dataclasses.replace(
        features,
        **{name: np.ascontiguousarray(getattr(features, name)[:, :checkpoints]) for name in cut},
    )


def once(work: Callable[[], _R]) -> tuple[float, _R]:
    """Seconds of a call, and what it returned."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def median(work: Callable[[], _R], runs: int) -> tuple[float, _R]:
    """Median seconds of some calls, after one to warm up, and what they returned."""
    result = work()
    return statistics.median(once(work)[0] for _ in range(runs)), result


def ask(test: Features, train: Features, index: Any, projection: Projection, scoring: Any) -> TopK:
    """What `tracin search` does, features in memory."""
    from transforms.vectors import faiss_index
    from transforms.vectors.search import score_candidates

    near = faiss_index.nearest(index, projection.project(test), OVERSAMPLING * scoring.k)
    return score_candidates(test, near, Resident(train), scoring)


class Resident:
    """Features in memory in the place of a feature set."""

    def __init__(self, features: Features) -> None:
        from transforms.core.shapes import Shape

        self._features = features
        self.shape = Shape(
            features.loss_grads.shape[1],
            features.loss_grads.shape[2],
            features.activations.shape[2],
        )

    def take(self, rows: np.ndarray) -> Features:
        return self._features.take(rows)


def draw(points: Sequence[Point], path: str, name: str) -> None:
    from matplotlib import pyplot

    counts, most, last = (
        sorted({p.tests for p in points}),
        max(p.trains for p in points),
        max(p.checkpoints for p in points),
    )
    panels = [
        *(
            (
                f"{n:,} test example{'s' if n > 1 else ''}",
                "trains",
                [p for p in points if p.tests == n and p.checkpoints == last],
            )
            for n in counts
        ),
        (
            f"{counts[-1]:,} test examples, all training examples",
            "checkpoints",
            [p for p in points if p.tests == counts[-1] and p.trains == most],
        ),
    ]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True, layout="constrained"
    )
    for axis, (title, along, shown) in zip(axes, panels, strict=True):
        level = 0.0
        ends = {
            kind: [p.seconds for p in shown if p.kind == kind][-1] for kind in ("exact", *KINDS)
        }
        for kind in sorted(ends, key=ends.__getitem__):
            # Names one above the other, where their lines end close together.
            level = max(ends[kind], 1.3 * level)
            mine = [p for p in shown if p.kind == kind]
            axis.plot(
                [getattr(p, along) for p in mine],
                [p.seconds for p in mine],
                "o-",
                color=COLOURS[kind],
                markersize=4,
            )
            told = kind if kind == "exact" else f"{kind}, finds {100 * mine[-1].recall:.1f} %"
            place = (getattr(mine[-1], along), level)
            axis.annotate(
                told,
                place,
                (6, 0),
                textcoords="offset points",
                color=COLOURS[kind],
                va="center",
                fontsize=8,
            )
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="training examples" if along == "trains" else along,
            title=title,
        )
        low, high = axis.get_xlim()
        axis.set_xlim(low, high * (high / low) ** 0.55)
        if along == "checkpoints":
            ticks = sorted({p.checkpoints for p in shown})
            axis.set_xticks(ticks, [str(t) for t in ticks])
            axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"seconds, {name}")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?")
    parser.add_argument("--workload", choices=(*SIZES, "all"), default="all")
    parser.add_argument("--part", choices=("vectors", "indexes", "all"), default="all")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plots")
    args = results.parse_args(parser)
    with tempfile.TemporaryDirectory() as temporary:
        data = pathlib.Path(args.directory or temporary)
        names = list(SIZES) if args.workload == "all" else [args.workload]
        if "fashion" in names:
            try:
                fashion_mnist.prepare(data)
            except FileNotFoundError as error:
                sys.exit(str(error))
            if not (data / "out" / "train_features" / "manifest.json").exists():
                run(command("influence", *influence_flags(data, data / "out", args.k)))
        for name in names:
            if args.part != "indexes":
                in_own_process(compare_vectors, name, data, args.k)
            if args.part != "vectors":
                points = in_own_process(compare_indexes, name, data, args.k, args.runs)
                if args.plots:
                    draw(points, args.plots, name)


if __name__ == "__main__":
    main()
