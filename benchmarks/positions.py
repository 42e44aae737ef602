"""Scores of whole examples, summed over the pairs of their positions: what they take, against
products of all pairs of positions.

    python -m benchmarks.positions [--tests=200] [--trains=10000] [--positions=20] [--outputs=10]
                                   [--units=129] [--checkpoints=3] [--k=10]
                                   [--results=benchmarks/results]

Examples have random numbers of positions, `--positions` on average, with heavy-tailed random
gradients. Printed are seconds to add up the training records, to search the sums (median of three),
and to multiply the pairs of positions as `tracin score` without `--sum_positions` does where it can
skip none, before anything is summed; then seconds and peak memory of the whole command.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import results
from benchmarks.feature_sets import write_set
from benchmarks.measure import command, in_own_process, median_seconds, run, timed

if TYPE_CHECKING:
    from transforms.core.features import Features

_EXAMPLES_PER_FILE = 250


def draw(rng: np.random.Generator, examples: int, first: int, args: argparse.Namespace) -> Features:
    """The records of some examples, ids counted from `first`."""
    from transforms.core.features import Features
    from transforms.core.ids import record_id

    sizes = rng.integers(1, 2 * args.positions, examples)
    owners, total = np.repeat(np.arange(examples), sizes), int(sizes.sum())
    scale = np.exp(rng.normal(size=examples))[owners, None, None]
    loss_grads = rng.normal(size=(total, args.checkpoints, args.outputs)) * scale
    activations = np.maximum(rng.normal(size=(total, args.checkpoints, args.units)), 0)
    labels = rng.integers(0, args.outputs, (total, 1))
    ids = [record_id(b"%07d" % (first + i), a) for i, size in enumerate(sizes) for a in range(size)]
    return Features.of(
        ids,
        labels,
        labels,
        np.ones(total),
        np.ones((total, args.checkpoints)),
        loss_grads,
        activations,
    )


def write(directory: pathlib.Path, examples: int, seed: int, args: argparse.Namespace) -> None:
    """Writes a committed feature set."""
    rng, starts = np.random.default_rng(seed), range(0, examples, _EXAMPLES_PER_FILE)
    parts = (draw(rng, min(_EXAMPLES_PER_FILE, examples - first), first, args) for first in starts)
    write_set(directory, parts, f"{seed}-{examples}", examples, per_token=True)


def search(args: argparse.Namespace) -> None:
    """Times adding up, searching, and products of positions, with all features in memory."""
    from benchmarks.measure import searched
    from transforms.scoring.gradients import Gradients, Summing
    from transforms.scoring.influence import Scoring
    from transforms.scoring.search.gradient_search import GradientSearch

    scoring = Scoring((0.1,) * args.checkpoints, args.k)
    test, train = (
        draw(np.random.default_rng(seed), n, 0, args)
        for seed, n in ((1, args.tests), (2, args.trains))
    )
    chunks: list[Gradients] = []

    def add_up() -> None:
        chunks.clear()
        summing = Summing(scoring.learning_rates, 2048)
        chunks.extend([*summing.add(train), summing.rest()])

    tests = Summing(scoring.learning_rates, args.tests)
    assert not list(tests.add(test))
    gradients = tests.rest()

    def find() -> None:
        found = GradientSearch(gradients, scoring)
        for chunk in chunks:
            sum(found.scan(chunk))
        counts.update(found.counts)

    counts: dict[str, int] = {}
    print(
        f"{args.tests:,} × {args.trains:,} examples of {len(test):,} × {len(train):,} positions, "
        f"{args.k} of both signs"
    )
    adding, finding = median_seconds(add_up, 3), median_seconds(find, 3)
    print(f"  adding up the training records   {adding:8.3f} s")
    print(f"  searching                        {finding:8.3f} s  {counts}")
    pairs = len(test) * len(train)
    part = test.take(slice(0, max(1, min(len(test), int(len(test) * 1e9 // pairs)))))
    searched(part.take(slice(0, 64)), train.take(slice(0, 1000)), scoring, dense=True)
    seconds = timed(lambda: searched(part, train, scoring, dense=True)) * len(test) / len(part)
    print(
        f"  products of pairs of positions   {seconds:8.3f} s  (from {len(part):,} positions of "
        "test examples)",
        flush=True,
    )
    results.record(
        "positions",
        f"{args.outputs}-outputs",
        ["", "s"],
        [
            ["adding up the training records", round(adding, 3)],
            ["searching", round(finding, 3)],
            ["products of pairs of positions", round(seconds, 3)],
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("tests", 200),
        ("trains", 10_000),
        ("positions", 20),
        ("outputs", 10),
        ("units", 129),
        ("checkpoints", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--memory_gb", type=float, default=2.0)
    args = results.parse_args(parser)
    in_own_process(search, args)
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        for name, examples, seed in (("test", args.tests, 1), ("train", args.trains, 2)):
            in_own_process(write, directory / name, examples, seed, args)
        sets = [f"--{name}_features={directory / name}" for name in ("train", "test")]
        words = [
            *sets,
            "--sum_positions",
            f"--k={args.k}",
            f"--memory_gb={args.memory_gb}",
            f"--output={directory / 'out'}",
        ]
        measured = run(command("score", *words))
        print(
            f"  the whole command                {measured.seconds:8.3f} s, peak "
            f"{measured.peak_bytes / 1e9:.2f} GB"
        )
        print("  " + measured.out.strip().splitlines()[-2])


if __name__ == "__main__":
    main()
