"""Flags of what users bring as a model: checkpoints, layer, loss, and how they are run."""

from __future__ import annotations

from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.flag import Flag, Use, commands

# The group of `tracin plan` for numbers of feature sets that do not exist yet.
PLANNED = "instead of feature sets that are not extracted yet"
_EXTRACTING = commands("influence", "features", "audit")

LEARNING_RATES = Flag(
    "learning_rates",
    kinds.RATES,
    "learning rate of each checkpoint, separated by commas, in their order (as their optimizers "
    "had them)",
    {
        **commands("influence", "features", "score", "audit", "plan"),
        "export": Use(group="vectors"),
        "index": Use(group="vectors"),
    },
    "model",
)

FLAGS = (
    Flag(
        "checkpoints",
        kinds.GLOBS,
        ".keras files, .weights.h5 files, or prefixes of TensorFlow checkpoints; a list without "
        "globs keeps its order, else the optimizer's step decides",
        {"influence": Use(required=True), "features": Use(required=True), "audit": Use()},
        "model",
    ),
    Flag(
        "model",
        kinds.MODEL_SOURCE,
        "architecture for weights: a .keras or .json file, or module:function",
        _EXTRACTING,
        "model",
    ),
    Flag(
        "import",
        kinds.MODULES,
        "modules that register custom code, also on workers",
        _EXTRACTING,
        "model",
        default=(),
        field="imports",
    ),
    Flag(
        "layer",
        kinds.NAME,
        "the last dense layer, where it is not found by itself",
        _EXTRACTING,
        "model",
    ),
    Flag(
        "output_name",
        kinds.NAME,
        "the output to explain, of a model with several",
        _EXTRACTING,
        "model",
    ),
    Flag(
        "per_token",
        kinds.SWITCH,
        "of a model whose last dense layer works on positions: make a record of each position that "
        "is not masked, id@position",
        _EXTRACTING,
        "model",
        default=False,
    ),
    Flag(
        "loss",
        kinds.LOSS,
        "loss, such as 'SparseCategoricalCrossentropy(from_logits=True)' (the compiled one)",
        _EXTRACTING,
        "model",
    ),
    LEARNING_RATES,
    Flag(
        "include_bias",
        kinds.BOOLEAN,
        "whether the last layer's bias counts (true)",
        _EXTRACTING,
        "model",
        default=True,
    ),
    Flag(
        "batch_size",
        kinds.POSITIVE,
        "examples per call of the model (256, fewer for large inputs); halved where they do not "
        "fit into memory",
        _EXTRACTING,
        "model",
    ),
    Flag(
        "feature_dtype",
        kinds.choice("float32", "bfloat16", "float16"),
        "dtype to which loss gradients and activations are rounded, and of their records (float32)",
        {
            **_EXTRACTING,
            # Absent where sets are named, whose manifests hold it.
            "plan": Use(group=PLANNED, default=None),
        },
        "model",
        default="float32",
    ),
    Flag(
        "share_checkpoints",
        kinds.choice("process", "machine"),
        "load the checkpoints once per worker process, or once per machine, whose processes then "
        "send their batches to the one that has them ({default})",
        _EXTRACTING,
        "model",
        default="process",
    ),
    Flag(
        "accelerator",
        kinds.ACCELERATOR,
        "Beam's resource hint for the workers that run the model, and for no others, such as "
        "'type:nvidia-l4;count:1'",
        _EXTRACTING,
        "model",
    ),
)
