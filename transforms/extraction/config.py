"""What is asked of stage 1: labels, precision, batches, and what is accepted."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ExtractionConfig:
    """How features are extracted.

    Attributes:
        labels: `given`, or `predicted` by the last checkpoint.
        feature_dtype: what loss gradients and activations are stored as: `float32`, `bfloat16` or
            `float16`.
        batch_size: examples per call of the model; None for 256, or fewer for large inputs.
        max_rejected_fraction: the run fails if a larger part of the examples is rejected.
        base: directory of an earlier feature set, whose records of unchanged examples are copied.
        accelerator: Beam's resource hint for the workers that run the model, such as
            `type:nvidia-l4;count:1`.
        overwrite: whether a complete feature set with other settings is replaced.
    """

    labels: str = "given"
    feature_dtype: str = "float32"
    batch_size: int | None = None
    max_rejected_fraction: float = 0.01
    base: str | None = None
    accelerator: str | None = None
    overwrite: bool = False
