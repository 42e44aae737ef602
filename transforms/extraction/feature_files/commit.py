"""The manifest of a feature set, assembled from its written parts, and the limit on rejects."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from transforms.core.errors import InputError
from transforms.examples.rejects import Reject
from transforms.extraction.feature_files.written_part import WrittenPart
from transforms.storage import filesystems
from transforms.storage.manifests import FeatureManifest


def assemble_manifest(
    draft: FeatureManifest,
    parts: Sequence[WrittenPart],
    max_rejected_fraction: float,
    directory: str,
) -> FeatureManifest:
    """Returns the manifest of a feature set whose parts are written.

    Raises:
        InputError: more than `max_rejected_fraction` of the examples were rejected.
    """
    ordered = sorted(parts, key=lambda part: part.order)
    reasons: Counter[str] = Counter()
    for part in ordered:
        reasons.update(part.reasons)
    files = tuple(part.features for part in ordered if part.features)
    counts = {
        "examples": sum(part.examples for part in ordered),
        "rejected": sum(reasons.values()),
    }
    if draft.per_token:
        counts["positions"] = sum(file.count for file in files)
    manifest = dataclasses.replace(
        draft,
        files=files,
        rejected_files=tuple(part.rejected for part in ordered if part.rejected),
        rejected=dict(reasons.most_common()),
        counts=counts,
    )
    first = next((part.first_reject for part in ordered if part.first_reject), None)
    check_rejected(manifest, directory, max_rejected_fraction, first)
    return manifest


def check_rejected(
    manifest: FeatureManifest,
    directory: str,
    max_rejected_fraction: float,
    first: Reject | None = None,
) -> None:
    """Checks that a feature set has few enough rejects; the message quotes the `first`, if given.

    Raises:
        InputError: more than `max_rejected_fraction` of the examples were rejected.
    """
    examples, rejected = manifest.counts["examples"], manifest.counts["rejected"]
    if rejected <= max_rejected_fraction * (examples + rejected):
        return
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in manifest.rejected.items())
    example = f"; the first: {first.source} record {first.offset}: {first.detail}" if first else ""
    raise InputError(
        f"{rejected:,} of {examples + rejected:,} examples were rejected ({reasons}), more than "
        f"`max_rejected_fraction={max_rejected_fraction:g}` allows{example}; "
        f"see {filesystems.join(directory, manifest.rejected_files[0].name)}"
    )
