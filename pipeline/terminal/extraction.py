"""The checkpoints that a run loads, and the feature sets that it writes."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from pipeline.terminal.amounts import count, size
from transforms.storage.manifests import FeatureManifest

# It brings TensorFlow, for which `tracin plan` does not wait.
if TYPE_CHECKING:
    from transforms.extraction.load_model import LoadedModel


def checkpoints(model: LoadedModel) -> str:
    """Returns the checkpoints in their order, with steps and learning rates."""
    loaded = model.loaded
    output = "" if loaded.output is None else f"output {loaded.output!r}, "
    lines = [
        f"{count(len(model.infos), 'checkpoint')}, {output}last dense layer {loaded.layer!r}, "
        f"loss {loaded.loss.description}:"
    ]
    for info, rate in zip(model.infos, model.learning_rates, strict=True):
        step = "" if info.step is None else f"  step {info.step:,}"
        described = (
            f"  learning rate {rate:g}"
            if rate is not None
            else f"  no learning rate ({info.note or 'unknown'})"
        )
        lines.append(f"  {posixpath.basename(info.path)}{step}{described}")
    return "\n".join(lines)


def features(directory: str, manifest: FeatureManifest, name: str = "features") -> str:
    """Returns how many examples a feature set holds, its size, and how many were rejected."""
    stored = sum(file.size for file in manifest.files)
    positions = f" of {manifest.examples:,} positions" if manifest.per_token else ""
    lines = [
        f"{name}: {manifest.counts['examples']:,} examples{positions}, {size(stored)} in "
        f"{count(len(manifest.files), 'file')} at {directory}"
    ]
    if manifest.rejected:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in manifest.rejected.items())
        lines.append(
            f"  {sum(manifest.rejected.values()):,} rejected ({reasons}): see "
            f"{posixpath.join(directory, 'rejected-*.jsonl')}"
        )
    return "\n".join(lines)
