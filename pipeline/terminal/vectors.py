"""Vectors that were exported, and indexes that were built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.terminal.amounts import count, size
from transforms.storage.manifests import Manifest

if TYPE_CHECKING:
    from transforms.vectors.projections.projection import Projection


def vectors(directory: str, manifest: Manifest, projection: Projection) -> str:
    """Returns how many vectors were exported, how they were made, and in which formats."""
    stored = sum(file.size for file in manifest.files)
    formats = ", ".join(manifest.settings["formats"])
    made = _projected(manifest, projection)
    return f"vectors: {made}, {size(stored)} ({formats}) at {directory}"


def index(directory: str, manifest: Manifest, projection: Projection) -> str:
    """Returns how many vectors were indexed, how they were made, and in how many files."""
    stored, files = sum(file.size for file in manifest.files), len(manifest.files) - 1
    made = _projected(manifest, projection)
    return f"index: {made}, {size(stored)} in {count(files, 'index file')} at {directory}"


def _projected(manifest: Manifest, projection: Projection) -> str:
    counts = manifest.counts
    coordinates = (
        f"{projection.kept:,} coordinates and a sketch of {projection.sketch.size:,}"
        if projection.sketch
        else "coordinates"
    )
    zero = f", {counts['zero']:,} of them zero" if counts["zero"] else ""
    return (
        f"{count(counts['vectors'], 'vector')}{zero} of {projection.dimensions:,} numbers "
        f"({projection.method}: {coordinates})"
    )
