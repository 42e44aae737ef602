"""What an audit's ranking is worth: wrong labels planted in Fashion-MNIST, found by `tracin audit`
and by what people use today.

    python -m benchmarks.audit [--directory=DIR] [--noise=uniform,similar] [--folds=5]

Of each noise: a network is trained in the ordinary way on the noisy labels, with a checkpoint of
each epoch; `tracin features` and `tracin audit` run on it. Beside the audit's `suspicion` stand,
from the same checkpoints, the mean of `1 - p(label)` and self-influence, and cleanlab's label
quality from out-of-sample probabilities, for which further networks are trained (pip install
'tracin-beam[benchmarks]'; left out where it is not installed). Then networks are trained anew
without the suspects, and with their suggested labels.

    uniform   10 % of the labels become any other class
    similar   10 % become another class of their group: T-shirt, pullover, coat, shirt; sandal,
              sneaker, boot

The constants of the ranking were chosen on other noises (rates, pairs, cycles, classes, weak
classifiers), networks and seeds.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import zlib

import numpy as np

from benchmarks import fashion_mnist, measure, results

SIMILAR = ((0, 2, 4, 6), (5, 7, 9))
RATE = 0.1


def noisy(labels: np.ndarray, noise: str) -> np.ndarray:
    """Labels of which a tenth is wrong."""
    rng = np.random.default_rng(0)
    out = labels.astype(np.int64)
    if noise == "uniform":
        wrong = rng.random(len(labels)) < RATE
        out[wrong] = (out[wrong] + rng.integers(1, 10, wrong.sum())) % 10
        return out
    share = np.isin(labels, [k for group in SIMILAR for k in group]).mean()
    drawn = rng.random(len(labels))
    for group in SIMILAR:
        for k in group:
            wrong = (labels == k) & (drawn < RATE / share)
            out[wrong] = rng.choice([other for other in group if other != k], wrong.sum())
    return out


def predict(checkpoints: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Probabilities [n, 10] of the last checkpoint."""
    import keras
    import tensorflow as tf

    model = keras.models.load_model(
        checkpoints / f"epoch-{fashion_mnist.CHECKPOINTS}.keras", compile=False
    )
    return np.asarray(
        tf.nn.softmax(
            model.predict(images[..., None].astype(np.float32) / 255, batch_size=1000, verbose=0)
        )
    )


def train_and_predict(
    directory: pathlib.Path, rows: np.ndarray, labels: np.ndarray, part: str, asked: np.ndarray
) -> np.ndarray:
    """Trains on some rows of the training set, with these labels, and predicts some rows of a part;
    kept for the next run.
    """
    kept = directory / "probabilities.npy"
    if not kept.exists():
        images, _ = fashion_mnist.load("train")
        fashion_mnist.train(directory, images[rows], labels)
        np.save(kept, predict(directory, fashion_mnist.load(part)[0][asked]))
    return np.load(kept)


def out_of_sample(directory: pathlib.Path, labels: np.ndarray, folds: int) -> np.ndarray:
    """Probabilities [n, 10] of each example by a network that was not trained on it."""
    fold = np.random.default_rng(1).permutation(len(labels)) % folds
    found = np.empty((len(labels), 10))
    for i in range(folds):
        rest, own = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
        found[own] = measure.in_own_process(
            train_and_predict, directory / f"fold-{folds}-{i}", rest, labels[rest], "train", own
        )
    return found


def accuracy(directory: pathlib.Path, rows: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy on the test set of a network that is trained on some rows; kept beside `directory`,
    by what it was trained on.
    """
    directory = directory.with_name(
        f"{directory.name}-{zlib.crc32(rows.tobytes() + labels.tobytes()):08x}"
    )
    _, truth = fashion_mnist.load("t10k")
    predicted = measure.in_own_process(
        train_and_predict, directory, rows, labels, "t10k", np.arange(len(truth))
    )
    return float((predicted.argmax(axis=1) == truth).mean())


def prepare(directory: pathlib.Path, labels: np.ndarray) -> None:
    """Examples with these labels, and checkpoints of an ordinary training on them."""
    images, _ = fashion_mnist.load("train")
    fashion_mnist.write_examples(
        directory / "examples", "train", images, labels, fashion_mnist.TRAIN_FILES
    )
    fashion_mnist.train(directory / "checkpoints", images, labels)


def report(directory: pathlib.Path, noise: str, folds: int) -> None:
    """Runs one noise and prints its table."""
    import pyarrow.dataset as ds
    from sklearn.metrics import average_precision_score, roc_auc_score

    _, truth = fashion_mnist.load("train")
    labels = noisy(truth, noise)
    wrong = labels != truth
    if not (directory / "prepared").exists():
        measure.in_own_process(prepare, directory, labels)
        (directory / "prepared").touch()
    features = measure.run(
        measure.command(
            "features",
            f"--examples={directory}/examples/train-*",
            f"--checkpoints={directory}/checkpoints/*.keras",
            "--id_key=id",
            f"--output={directory}/features",
        )
    )
    audit = measure.run(
        measure.command(
            "audit",
            f"--features={directory}/features",
            f"--output={directory}/audit",
            "--overwrite",
        )
    )
    rows = (
        ds.dataset(sorted(map(str, (directory / "audit").glob("examples-*.parquet"))))
        .to_table()
        .to_pydict()
    )
    assert rows["label"] == labels.tolist()
    found = {
        name: np.array(rows[name])
        for name in ("suspicion", "suggested_label", "label_probability", "self_influence")
    }
    rankings = {
        "tracin audit: suspicion": found["suspicion"],
        "mean 1 - p(label)": 1 - found["label_probability"],
        "self-influence": found["self_influence"],
    }
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        print("cleanlab is not installed (pip install 'tracin-beam[benchmarks]'): left out")
    else:
        scores = get_label_quality_scores(labels, out_of_sample(directory, labels, folds))
        rankings[f"cleanlab, {folds}-fold cross-validation"] = 1 - scores
    print(
        f"\n{noise}: {wrong.sum():,} of {len(wrong):,} labels are wrong ({100 * wrong.mean():.1f} "
        "%)\n"
    )
    print(
        "| ranking | average precision | AUROC | found at 5 % | 10 % | 20 % "
        "|\n|---|---|---|---|---|---|"
    )
    results.record(
        "audit",
        noise,
        ["ranking", "average precision", "AUROC"],
        [
            [
                name,
                round(average_precision_score(wrong, score), 3),
                round(roc_auc_score(wrong, score), 4),
            ]
            for name, score in rankings.items()
        ],
    )
    for name, score in rankings.items():
        order = np.argsort(-score, kind="stable")
        at = " | ".join(
            f"{wrong[order[: int(part * len(order))]].sum() / wrong.sum():.3f}"
            for part in (0.05, 0.1, 0.2)
        )
        print(
            f"| {name} | {average_precision_score(wrong, score):.3f} | "
            f"{roc_auc_score(wrong, score):.4f} | {at} |"
        )
    suspects = found["suspicion"] >= 0.5
    right = (found["suggested_label"][suspects & wrong] == truth[suspects & wrong]).mean()
    print(
        f"\n{suspects.sum():,} suspects, of which {100 * wrong[suspects].mean():.1f} % are wrong; "
        "the suggested label of those is right in "
        f"{100 * right:.1f} %. Wrong labels expected: {found['suspicion'].sum():,.0f}."
    )
    every = np.arange(len(labels))
    trained = {
        "the noisy labels": accuracy(directory / "noisy", every, labels),
        "without the suspects": accuracy(
            directory / "dropped", every[~suspects], labels[~suspects]
        ),
        "with suggested labels": accuracy(
            directory / "corrected", every, np.where(suspects, found["suggested_label"], labels)
        ),
        "the true labels": accuracy(directory / "true", every, truth.astype(np.int64)),
    }
    print(
        "Test accuracy after training on "
        + ", ".join(f"{name} {value:.4f}" for name, value in trained.items())
        + "."
    )
    print(
        f"Time of the audit over that of its features: {audit.seconds / features.seconds:.2f} "
        f"(peak memory {audit.peak_bytes / 1e9:.2f} GB)"
    )


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
    flags.add_argument("--noise", default="uniform,similar")
    flags.add_argument("--folds", type=int, default=5)
    args = results.parse_args(flags)
    if not fashion_mnist.available():
        raise SystemExit(fashion_mnist.MISSING)
    directory = args.directory or pathlib.Path(tempfile.mkdtemp())
    for noise in args.noise.split(","):
        report(directory / noise, noise, args.folds)


if __name__ == "__main__":
    main()
