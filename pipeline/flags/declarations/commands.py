"""The commands: what each does, and its flags in the order of its help."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from pipeline.flags.declarations import (
    examples,
    model,
    planning,
    scoring,
    sets,
    suspects,
    vectors,
)
from pipeline.flags.declarations.flag import Flag, names_of


@dataclasses.dataclass(frozen=True)
class DeclaredCommand:
    """The declaration of a command.

    Attributes:
        summary: what it does, without a full stop.
        groups: the headings of its flags, in order; flags without a heading come first.
        alternatives: sets of flags, of which the user must give all of one.
        between: what stands between an alternative's flags in a message.
        before_last: what stands before the last alternative where none is given.
        computes: whether it takes TensorFlow, which is then loaded before it starts.
    """

    summary: str
    groups: tuple[str, ...] = ()
    alternatives: tuple[tuple[str, ...], ...] = ()
    between: str = ", "
    before_last: str = ""
    computes: bool = True


COMMANDS: Mapping[str, DeclaredCommand] = {
    "influence": DeclaredCommand(
        "trace test predictions to the training examples behind them: features and scores in one "
        "run",
        ("data", "model", "scoring"),
    ),
    "features": DeclaredCommand(
        "extract the features of a set of examples (stage 1)", ("data", "model")
    ),
    "score": DeclaredCommand(
        "score a test feature set against a training feature set (stage 2)",
        ("data", "scoring", "model"),
        computes=False,
    ),
    "audit": DeclaredCommand(
        "find the labels of a training set that are likely wrong",
        ("data", "model", "suspects"),
        alternatives=(("features",), ("examples", "checkpoints")),
        between=" and ",
    ),
    "export": DeclaredCommand(
        "turn a feature set into vectors whose dot product is, or is near to, the influence",
        ("data", "vectors"),
    ),
    "index": DeclaredCommand(
        "build a nearest-neighbour index of a training feature set (needs the extra `neighbours`)",
        ("data", "vectors"),
    ),
    "search": DeclaredCommand(
        "find each test example's proponents and opponents by an index, and score them exactly",
        ("data", "search"),
    ),
    "show": DeclaredCommand(
        "see what an audit or an influence result holds, in the terminal", computes=False
    ),
    "plan": DeclaredCommand(
        "predict the cost of a `tracin score` with the same flags: tiles, bytes, arithmetic, "
        "memory; nothing is run or written",
        ("data", model.PLANNED, "scoring", "model"),
        alternatives=(("train_features", "test_features"), names_of(planning.COUNTS)),
        before_last="of sets that are not there yet ",
        computes=False,
    ),
    "demo": DeclaredCommand(
        "see the whole story on real handwritten digits that come with the install"
    ),
}

# In the order of the help.
FLAGS: tuple[Flag, ...] = (
    *sets.FLAGS,
    *examples.FLAGS,
    *vectors.PROJECTION,
    *planning.FLAGS,
    *model.FLAGS,
    *scoring.FLAGS,
    *vectors.FLAGS,
    *suspects.FLAGS,
)


@functools.cache
def flags_of(command: str) -> tuple[Flag, ...]:
    """Returns the flags of a command as it has them, group by group."""
    flags = [flag.within(command) for flag in FLAGS if command in flag.commands]
    return tuple(
        flag for group in ("", *COMMANDS[command].groups) for flag in flags if flag.group == group
    )
