"""Flags of what users bring as data: how examples are read, and which are rejected."""

from __future__ import annotations

from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.flag import Flag, Use, commands

_LABELS = kinds.choice("given", "predicted")
_EXTRACTING = commands("influence", "features", "audit")

FLAGS = (
    Flag(
        "input_keys",
        kinds.KEYS,
        "keys of the model's inputs, in its order (image; of a model with several inputs, their "
        "names)",
        _EXTRACTING,
        "data",
    ),
    Flag(
        "label_key", kinds.KEY, "key of the label ({default})", _EXTRACTING, "data", default="label"
    ),
    Flag(
        "id_key",
        kinds.KEY,
        "key of a unique id; else ids are FILE#INDEX, which change when records are inserted",
        _EXTRACTING,
        "data",
    ),
    Flag(
        "keep_keys",
        kinds.KEYS,
        "further keys to copy into the feature records",
        _EXTRACTING,
        "data",
        default=(),
    ),
    Flag(
        "parse_fn",
        kinds.FUNCTION,
        "function from a serialized record to a mapping of the keys above, for other kinds of "
        "records",
        _EXTRACTING,
        "data",
    ),
    Flag(
        "train_labels",
        _LABELS,
        "labels of the training examples: as given, or the last checkpoint's predictions "
        "({default})",
        commands("influence"),
        "data",
        default="given",
    ),
    Flag(
        "test_labels",
        _LABELS,
        "likewise for the test examples; predicted explains predictions without labels ({default})",
        commands("influence"),
        "data",
        default="given",
    ),
    Flag(
        "labels",
        _LABELS,
        "labels as given, or the last checkpoint's predictions ({default})",
        commands("features"),
        "data",
        default="given",
    ),
    Flag(
        "base",
        kinds.INPUT_DIRECTORY,
        "result of an earlier run with the same flags, whose feature records of unchanged examples "
        "are copied",
        {
            "influence": Use(),
            "features": Use(
                help="feature set of an earlier run with the same flags, whose records of examples "
                "unchanged in id and content are copied"
            ),
            "audit": Use(),
        },
        "data",
    ),
    Flag(
        "max_rejected_fraction",
        kinds.FRACTION,
        "fail if a larger part of the examples is rejected ({default})",
        _EXTRACTING,
        "data",
        default=0.01,
    ),
    Flag(
        "allow_truncated_files",
        kinds.SWITCH,
        "use a file whose tail cannot be read as far as it goes",
        _EXTRACTING,
        "data",
        default=False,
    ),
)
