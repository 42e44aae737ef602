"""`tracin features`, whole commands, against the bare forward passes of the same checkpoints over
the same tensors in memory.

    python -m benchmarks.features [DIR] [--workload=fashion|resnet|all] [--times=1,4,16]
                                  [--images=256] [--results=benchmarks/results]

Workloads:

    fashion  Fashion-MNIST's 70,000 examples, 6 checkpoints of a small network
    resnet   `--images` synthetic JPEGs of 224 × 224, 2 checkpoints of ResNet-50 with random weights

both with the same files `--times` over. Of each size it prints wall time, peak memory, and the
forward passes' part of the whole command; then their part of what each further example costs, which
leaves start-up out: Python's imports, loading and tracing the model. Machines are noisy: quote the
ratios. The bare passes are measured before and after each size, in processes of their own, and
their median counts: one process and the next differ by a quarter. DIR keeps the data (a temporary
directory otherwise).
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable

from benchmarks import fashion_mnist, results
from benchmarks.influence import forward_seconds
from benchmarks.measure import Measured, command, in_own_process, median_seconds, run

SIZE, BATCH, RESNETS = 224, 64, 2


def prepare_resnet(directory: pathlib.Path, images: int) -> None:
    """Writes JPEGs, in one file, and the checkpoints."""
    import keras
    import numpy as np
    import tensorflow as tf

    (directory / "examples").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with tf.io.TFRecordWriter(str(directory / "examples" / "jpegs.tfrecord")) as writer:
        for i in range(images):
            coarse = rng.integers(0, 256, (SIZE // 8, SIZE // 8, 3)).astype(np.float32)
            pixels = tf.cast(
                tf.clip_by_value(tf.image.resize(coarse, (SIZE, SIZE), "bicubic"), 0, 255), tf.uint8
            )
            feature = {
                "image": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[tf.io.encode_jpeg(pixels).numpy()])
                ),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 1000])),
            }
            writer.write(
                tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
            )
    for t in range(RESNETS):
        keras.utils.set_random_seed(t)
        layers = [
            keras.layers.Input((SIZE, SIZE, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.applications.ResNet50(weights=None),
        ]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy())
        model.save(directory / f"resnet-{t}.keras")


def resnet_forward_seconds(directory: pathlib.Path) -> float:
    """Seconds of the bare forward passes over decoded images in memory, in one tf.function."""
    import keras
    import tensorflow as tf

    models = [
        keras.models.load_model(directory / f"resnet-{t}.keras", compile=False)
        for t in range(RESNETS)
    ]
    records = tf.data.TFRecordDataset(str(directory / "examples" / "jpegs.tfrecord")).map(
        lambda record: tf.io.decode_jpeg(
            tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], tf.string)})[
                "image"
            ]
        )
    )
    batches = [tf.cast(batch, tf.float32) for batch in records.batch(BATCH)]

    @tf.function(reduce_retracing=True)
    def forward(batch: tf.Tensor) -> list[tf.Tensor]:
        return [model(batch, training=False) for model in models]

    def all_batches() -> None:
        for batch in batches:
            forward(batch)

    return median_seconds(all_batches, 1)


def report(
    name: str,
    bare: Callable[[], float],
    sizes: list[int],
    extract: Callable[[int], Measured],
    copy: Callable[[int], Measured],
) -> None:
    """Runs and prints each size, a multiple of that which `bare` gives the seconds of; and the last
    from what was extracted before.
    """
    passes, measured = [bare()], []
    for times in sizes:
        measured.append(extract(times))
        passes.append(bare())
    forward = statistics.median(passes)
    print(f"{name}: bare forward passes {forward:.2f} s ({min(passes):.2f} to {max(passes):.2f})")
    for times, one in zip(sizes, measured, strict=True):
        print(
            f"  {times:>3} ×  {one.seconds:6.1f} s wall, of which forward passes are "
            f"{forward * times / one.seconds:.2f}; {one.peak_bytes / 1e9:.2f} GB peak, "
            f"{one.peak_bytes / measured[0].peak_bytes:.2f} of the first",
            flush=True,
        )
    if len(sizes) > 1:
        further = (measured[-1].seconds - measured[0].seconds) / (sizes[-1] - sizes[0])
        print(f"  forward passes are {forward / further:.2f} of what further examples cost")
    results.record(
        "features",
        name,
        ["times", "wall s", "forward passes' part", "peak GB"],
        [
            [
                times,
                round(one.seconds, 1),
                round(forward * times / one.seconds, 2),
                round(one.peak_bytes / 1e9, 1),
            ]
            for times, one in zip(sizes, measured, strict=True)
        ],
    )
    copied = copy(sizes[-1])
    print(
        f"  all of them copied with --base: {copied.seconds:.1f} s wall, "
        f"{copied.seconds / measured[-1].seconds:.2f} of computing them"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=pathlib.Path)
    parser.add_argument("--workload", choices=("fashion", "resnet", "all"), default="all")
    parser.add_argument(
        "--times", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 16]
    )
    parser.add_argument("--images", type=int, default=256)
    args = results.parse_args(parser)
    with tempfile.TemporaryDirectory() as scratch:
        data, output, base = (
            args.directory or pathlib.Path(scratch) / "data",
            pathlib.Path(scratch) / "out",
            pathlib.Path(scratch) / "base",
        )

        def extract(examples: str, checkpoints: pathlib.Path, *flags: str) -> Measured:
            shutil.rmtree(output, ignore_errors=True)
            return run(
                command(
                    "features",
                    f"--examples={examples}",
                    f"--checkpoints={checkpoints}",
                    f"--output={output}",
                    *flags,
                )
            )

        def from_base(extract: Callable[..., Measured]) -> Callable[[int], Measured]:
            def copy(times: int) -> Measured:
                shutil.rmtree(base, ignore_errors=True)
                output.rename(base)
                return extract(times, f"--base={base}")

            return copy

        def measure(
            name: str, bare: Callable[[], float], examples: pathlib.Path, checkpoints: pathlib.Path
        ) -> None:
            copies = pathlib.Path(scratch) / name
            for i in range(max(args.times)):
                (copies / f"copy-{i:03d}").mkdir(parents=True)
                for path in examples.iterdir():
                    (copies / f"copy-{i:03d}" / path.name).symlink_to(path.resolve())

            def extract_copies(times: int, *flags: str) -> Measured:
                # A glob for the copy, whose name is then part of the ids.
                return extract(
                    ",".join(f"{copies}/copy-{i:03d}*/*" for i in range(times)), checkpoints, *flags
                )

            report(name, bare, args.times, extract_copies, from_base(extract_copies))

        if args.workload in ("fashion", "all"):
            if not fashion_mnist.available():
                sys.exit(fashion_mnist.MISSING)
            in_own_process(fashion_mnist.prepare, data)
            measure(
                "fashion",
                lambda: in_own_process(forward_seconds, data),
                data / "examples",
                data / "checkpoints" / "*.keras",
            )
        if args.workload in ("resnet", "all"):
            in_own_process(prepare_resnet, data / "resnet", args.images)
            resnet = data / "resnet"
            measure(
                "resnet",
                lambda: in_own_process(resnet_forward_seconds, resnet),
                resnet / "examples",
                resnet / "*.keras",
            )


if __name__ == "__main__":
    main()
