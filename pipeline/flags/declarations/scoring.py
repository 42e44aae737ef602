"""Flags of stage 2: what is ranked, how it is normalised, in how much memory."""

from __future__ import annotations

from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.flag import Flag, Needs, Use, commands

_SCORING = commands("influence", "score", "plan")

FLAGS = (
    Flag(
        "k",
        kinds.POSITIVE,
        "proponents and opponents of each test example ({default})",
        {**_SCORING, "search": Use(group="search")},
        "scoring",
        default=10,
        metavar="K",
    ),
    Flag(
        "normalize",
        kinds.choice("none", "cosine", "relatif"),
        "none; cosine: divide by both gradients' lengths; relatif: by the training example's "
        "({default})",
        {
            **_SCORING,
            "export": Use(
                group="vectors",
                kind=kinds.choice("none", "cosine"),
                default=None,
                help="cosine: vectors of length 1 (none, or as the vectors of --projection_of)",
            ),
            "index": Use(group="vectors"),
        },
        "scoring",
        default="none",
    ),
    Flag(
        "sum_positions",
        kinds.SWITCH,
        "of features that are per token: score whole examples, by the sum over all pairs of their "
        "positions, instead of positions",
        {
            "influence": Use(
                needs=(
                    Needs(
                        ("per_token",),
                        "adds up the positions of examples: they are told apart with --per_token",
                    ),
                )
            ),
            "score": Use(),
            "plan": Use(
                needs=(
                    Needs(
                        ("train_features",),
                        "needs --train_features and --test_features: --train_count tells nothing "
                        "of positions",
                    ),
                )
            ),
        },
        "scoring",
        default=False,
    ),
    Flag(
        "memory_gb",
        kinds.GIGABYTES,
        "memory for scoring on each machine ({default})",
        {
            **_SCORING,
            "index": Use(
                group="vectors",
                help="memory for building on each machine ({default}); decides the index files' "
                "size",
            ),
        },
        "scoring",
        default=2.0,
    ),
    Flag(
        "test_rows_per_tile",
        kinds.POSITIVE,
        "size of the test blocks (planned from the memory)",
        _SCORING,
        "scoring",
    ),
    Flag(
        "train_rows_per_tile",
        kinds.POSITIVE,
        "size of the training ranges (planned from the memory)",
        _SCORING,
        "scoring",
    ),
)
