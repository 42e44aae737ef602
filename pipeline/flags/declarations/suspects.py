"""Flags of the audit: which labels are suspects, and when an audit fails."""

from __future__ import annotations

from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.flag import Flag, Needs, commands

_AUDIT = commands("audit")
_COMPARED = (Needs(("previous",), "needs an audit to compare with: name it with --previous"),)
_THRESHOLDS = ("max_suspect_fraction", "max_appeared_suspects", "max_shift")

FLAGS = (
    Flag(
        "min_suspicion",
        kinds.FRACTION,
        "least probability that the label of a suspect is wrong ({default})",
        _AUDIT,
        "suspects",
        default=0.5,
    ),
    Flag(
        "max_suspects_per_class",
        kinds.POSITIVE,
        "list at most so many suspects of one label, the most suspicious; all are counted "
        "({default})",
        _AUDIT,
        "suspects",
        default=1000,
    ),
    Flag(
        "min_similarity",
        kinds.FRACTION,
        "least similarity of duplicates with different labels: the mean cosine of their "
        "activations about the mean ({default})",
        _AUDIT,
        "suspects",
        default=0.99,
    ),
    Flag(
        "max_suspect_fraction",
        kinds.FRACTION,
        "threshold: suspects among the examples, as a fraction (none)",
        _AUDIT,
        "suspects",
    ),
    Flag(
        "max_appeared_suspects",
        kinds.WHOLE,
        "threshold: suspects that --previous did not have (none)",
        _AUDIT,
        "suspects",
        needs=_COMPARED,
    ),
    Flag(
        "max_shift",
        kinds.FRACTION,
        "threshold: Kolmogorov-Smirnov distance of a class's self-influence from that of "
        "--previous (none)",
        _AUDIT,
        "suspects",
        needs=_COMPARED,
    ),
    Flag(
        "fail_on_drift",
        kinds.SWITCH,
        "when a threshold is crossed, fail after everything is written, and end with exit status 3",
        _AUDIT,
        "suspects",
        default=False,
        needs=(
            Needs(
                _THRESHOLDS,
                "needs a threshold: --max_suspect_fraction, --max_appeared_suspects or --max_shift",
            ),
        ),
    ),
)
