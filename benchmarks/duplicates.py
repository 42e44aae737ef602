"""What an audit's groups of duplicates are worth: copies with other labels planted in
Fashion-MNIST, found again by `tracin audit`.

    python -m benchmarks.duplicates [--directory=DIR] [--similarity=0.98,0.99]

Of 300 training images each, a copy with another label is added: exact, with noise (standard
deviation 0.02 of the range, then cut to it), or shifted by one pixel. A network is trained in the
ordinary way on all of it, with a checkpoint of each epoch; `tracin features` and `tracin audit` run
on it. Found is a copy that shares a group with its original. A group without any planted copy is
not wrong by that: Fashion-MNIST has near-duplicates of its own, so the mean distance of their
pictures is told beside that of random pairs.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import numpy as np

from benchmarks import fashion_mnist, measure, results

KINDS = ("exact", "noise", "shifted")
COPIES = 300


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels with the copies behind the others, and the row that each copy, kind by
    kind, is of.
    """
    images, labels = fashion_mnist.load("train")
    rng = np.random.default_rng(0)
    rows = rng.choice(len(images), len(KINDS) * COPIES, replace=False)
    copies = images[rows].copy()
    noise, shifted = copies[COPIES : 2 * COPIES], copies[2 * COPIES :]
    noise[:] = np.clip(np.rint(noise + rng.normal(0, 0.02 * 255, noise.shape)), 0, 255)
    for i in range(COPIES):
        shifted[i] = np.roll(shifted[i], rng.choice([-1, 1]), axis=int(rng.integers(2)))
    others = (labels[rows] + rng.integers(1, 10, len(rows))) % 10
    return np.concatenate([images, copies]), np.concatenate([labels, others]).astype(np.int64), rows


def prepare(directory: pathlib.Path) -> None:
    """Examples with the copies, and checkpoints of an ordinary training on them."""
    images, labels, _ = planted()
    fashion_mnist.write_examples(
        directory / "examples", "train", images, labels, fashion_mnist.TRAIN_FILES
    )
    fashion_mnist.train(directory / "checkpoints", images, labels)


def extract(directory: pathlib.Path) -> None:
    """The features of a prepared directory, unless they are there."""
    if not (directory / "prepared").exists():
        measure.in_own_process(prepare, directory)
        (directory / "prepared").touch()
    words = [
        f"--examples={directory}/examples/train-*",
        f"--checkpoints={directory}/checkpoints/*.keras",
        "--id_key=id",
    ]
    measure.run(measure.command("features", *words, f"--output={directory}/features"))


def report(directory: pathlib.Path, similarity: float) -> list[object]:
    """Audits a directory with this similarity and prints a row of the table; returns it, too."""
    import pyarrow.parquet as pq

    images, _, originals = planted()
    measured = measure.run(
        measure.command(
            "audit",
            f"--features={directory}/features",
            f"--output={directory}/audit",
            f"--min_similarity={similarity}",
            "--overwrite",
        )
    )
    rows = pq.read_table(
        directory / "audit" / "duplicates.parquet", columns=["group", "conflicting", "example_id"]
    ).to_pylist()
    group = {
        int(row["example_id"].rpartition("-")[2]): row["group"]
        for row in rows
        if row["conflicting"]
    }
    copies = len(images) - len(originals) + np.arange(len(originals))
    found = np.array(
        [
            one in group and group[one] == group.get(of)
            for one, of in zip(copies.tolist(), originals.tolist(), strict=True)
        ]
    )
    parts = [float(found[i * COPIES : (i + 1) * COPIES].mean()) for i in range(len(KINDS))]
    recall = " | ".join(f"{part:.3f}" for part in parts)
    members: dict[int, list[int]] = {}
    for row, number in group.items():
        members.setdefault(number, []).append(row)
    others = [sorted(one) for one in members.values() if max(one) < copies[0]]
    apart = (
        np.mean([np.abs(images[a].astype(int) - images[b]).mean() for a, b, *_ in others])
        if others
        else float("nan")
    )
    largest = max((len(one) for one in members.values()), default=0)
    print(
        f"| {similarity:g} | {recall} | {len(others):,} | {apart:.0f} | {largest:,} | "
        f"{measured.seconds:.1f} s |",
        flush=True,
    )
    return [similarity, *(round(part, 3) for part in parts), len(others), largest]


def main() -> None:
    """Reads flags and runs what they ask for."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--directory",
        type=pathlib.Path,
        help="kept for the next run, which then trains nothing again",
    )
    flags.add_argument("--similarity", default="0.97,0.98,0.99,0.995")
    args = results.parse_args(flags)
    if not fashion_mnist.available():
        raise SystemExit(fashion_mnist.MISSING)
    directory = args.directory or pathlib.Path(tempfile.mkdtemp())
    extract(directory)
    images, _, _ = planted()
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, 60_000, (1000, 2))
    random = np.mean([np.abs(images[a].astype(int) - images[b]).mean() for a, b in pairs])
    print(f"{COPIES} copies of each kind; random pairs of pictures are {random:.0f} of 255 apart\n")
    print(
        f"| similarity | {' | '.join(KINDS)} | groups without a copy | their pictures apart | "
        "largest group | audit |"
    )
    print("|" + "---|" * (len(KINDS) + 5))
    rows = [report(directory, float(one)) for one in args.similarity.split(",")]
    columns = ["least similarity", *KINDS, "groups of other examples", "largest group"]
    results.record("duplicates", "fashion", columns, rows)


if __name__ == "__main__":
    main()
