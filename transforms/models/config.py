"""What is asked of a model: its checkpoints, and how they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model at some of its checkpoints.

    Attributes:
        checkpoints: `.keras` or `.weights.h5` files or TensorFlow checkpoint prefixes: globs, in
            one text separated by commas, or in a sequence. A list without globs keeps its order;
            else the optimizer's step decides.
        model: the architecture for weights: a `.keras` or `.json` file, or `module:function`.
        imports: modules that register custom code.
        layer: the last dense layer, where it is not found by itself.
        output_name: the output to explain, of a model with several.
        per_token: whether each position of an example is a feature record, of a model whose last
            dense layer works on positions.
        loss: a loss instead of the compiled one, such as `MeanSquaredError` or
            `SparseCategoricalCrossentropy(from_logits=True)`.
        learning_rates: η of each checkpoint, in order; None for the optimizers' own.
        include_bias: whether the gradient by the last layer's bias counts.
        share_checkpoints: `process` to load them once per worker process, `machine` to load them
            once per machine.
    """

    checkpoints: str | Sequence[str]
    model: str | None = None
    imports: tuple[str, ...] = ()
    layer: str | None = None
    output_name: str | None = None
    per_token: bool = False
    loss: str | None = None
    learning_rates: tuple[float, ...] | None = None
    include_bias: bool = True
    share_checkpoints: str = "process"
