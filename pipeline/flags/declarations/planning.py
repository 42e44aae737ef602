"""Flags of `tracin plan` and `tracin show`, which write nothing."""

from __future__ import annotations

from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.flag import Flag, commands, required_by
from pipeline.flags.declarations.model import PLANNED

_PLAN = commands("plan")

COUNTS = (
    Flag("train_count", kinds.COUNT, "number of training examples", _PLAN, PLANNED),
    Flag("test_count", kinds.COUNT, "number of test examples", _PLAN, PLANNED),
    Flag("checkpoint_count", kinds.COUNT, "number of checkpoints", _PLAN, PLANNED, metavar="T"),
    Flag("outputs", kinds.COUNT, "outputs of the last dense layer", _PLAN, PLANNED, metavar="C"),
    Flag(
        "units",
        kinds.COUNT,
        "inputs of the last dense layer, and 1 more where its bias counts",
        _PLAN,
        PLANNED,
        metavar="D",
    ),
)

FLAGS = (
    *COUNTS,
    Flag("json", kinds.SWITCH, "print one JSON object, in bytes", _PLAN, default=False),
    Flag(
        "directory",
        kinds.INPUT_DIRECTORY,
        "directory of an audit or of influence",
        required_by("show"),
        positional=True,
    ),
    Flag(
        "id",
        kinds.ID,
        "show all that is known of this example, or test example",
        commands("show"),
    ),
    Flag(
        "rows",
        kinds.POSITIVE,
        "otherwise show so many of the first rows ({default})",
        commands("show"),
        default=20,
    ),
)
