"""A result of scoring or searching, and how it was made."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping

from pipeline.terminal.amounts import count, percent, size
from transforms.storage.manifests import Manifest

# Counters of pairs by their fate, and its words.
_FATES = {
    "pairs-zero": "zero gradients",
    "pairs-blocks": "skipped in blocks",
    "pairs-loss_gradients": "sieved by loss gradients",
    "pairs-products": "multiplied whole",
}


def influence(directory: str, manifest: Manifest) -> str:
    """Returns how many rows a result holds, and where its report is."""
    stored = sum(file.size for file in manifest.files if file.name.startswith("influence-"))
    lines = [
        f"influence: {count(manifest.counts['rows'], 'row')} as JSON lines and as Parquet, "
        f"{size(stored)} at {directory}"
    ]
    # Results of earlier versions have none.
    if any(file.name == "report.html" for file in manifest.files):
        lines.append(f"  open {posixpath.join(directory, 'report.html')} in a browser")
    return "\n".join(lines)


def recall(data: bytes | None) -> str:
    """Returns the part of the exact answer that a search has found.

    Args:
        data: content of the file of a measured recall, if there is one.
    """
    if data is None:
        return "what the index did not find was not measured: see --recall_sample"
    measured = json.loads(data)
    parts = [
        f"{100 * measured[sign]['recall']:.2f} % of the {measured['k']} strongest {sign} (at least "
        f"{100 * measured[sign]['lowest']:.0f} %)"
        for sign in ("proponents", "opponents")
        if measured[sign]
    ]
    return (
        f"found {' and '.join(parts) or 'nothing to find'}, by the exact answer for "
        f"{count(measured['tests'], 'test example')}"
    )


def skipped(counts: Mapping[str, int], pairs: int) -> str:
    """Returns the fate of all pairs, by a run's counters, which says why scoring was fast or
    slow.
    """
    known = sum(counts.get(name, 0) for name in _FATES)
    if known != pairs:
        # Not every runner reports all of its counters.
        return (
            f"{pairs:,} pairs; what became of them is not known on this runner, which tells of "
            f"{known:,}"
        )
    fates = ", ".join(
        f"{percent(counts[name], pairs)} {words}"
        for name, words in _FATES.items()
        if counts.get(name, 0)
    )
    scored, shuffled = counts.get("pairs-scored-exactly", 0), counts.get("bytes-shuffled", 0)
    again = counts.get("tests-again", 0)
    searched_again = f"; {count(again, 'test example')} searched again" if again else ""
    return (
        f"{pairs:,} pairs: {fates}; {scored:,} scored exactly; {size(shuffled)} left the tiles"
        f"{searched_again}"
    )
