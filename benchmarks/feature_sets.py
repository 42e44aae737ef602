"""Feature sets of made-up features, for benchmarks of what reads them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transforms.core.features import Features


def write_set(
    directory: pathlib.Path,
    parts: Iterable[Features],
    fingerprint: str,
    examples: int,
    per_token: bool = False,
) -> None:
    """Writes a committed feature set of so many examples, a file for each part (at least one);
    `per_token`, records are positions.
    """
    from transforms.core.origins import Origin
    from transforms.storage import filesystems, manifests
    from transforms.storage.manifests import FeatureManifest
    from transforms.storage.records import feature_record, tfrecords

    written = []
    for number, part in enumerate(parts):
        payloads = feature_record.encode(
            part, [Origin("synthetic", i, b"") for i in range(len(part))]
        )
        written.append(
            filesystems.write(
                str(directory),
                f"features-{number:05d}.tfrecord",
                tfrecords.join_frames(payloads),
                len(part),
            )
        )
    _, checkpoints, outputs = part.loss_grads.shape
    manifests.write(
        str(directory),
        FeatureManifest(
            kind="features",
            fingerprint=fingerprint,
            settings={"labels": "given", "include_bias": True, "keep_keys": [], "parse_fn": None},
            files=tuple(written),
            counts={
                "examples": examples,
                **({"positions": sum(file.count for file in written)} if per_token else {}),
            },
            model_fingerprint="synthetic",
            task="class",
            outputs=outputs,
            units=part.activations.shape[2],
            checkpoints=tuple(f"{t}" for t in range(checkpoints)),
            learning_rates=(0.1,) * checkpoints,
            rejected_files=(),
            rejected={},
            per_token=per_token,
        ),
    )
