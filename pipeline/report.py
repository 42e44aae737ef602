"""What a person is told in words: the checkpoints of a run, and what it read, set aside and wrote."""

from __future__ import annotations

import posixpath
import time

from pipeline.inputs import PreparedModel
from transforms.manifest import FeatureManifest, Manifest


def checkpoints(prepared: PreparedModel) -> str:
    """The checkpoints in their order, with steps and learning rates."""
    lines = [
        f"{_count(len(prepared.infos), 'checkpoint')}, last dense layer {prepared.loaded.layer!r}, loss {prepared.loaded.loss.description}:"
    ]
    for info, rate in zip(prepared.infos, prepared.learning_rates, strict=True):
        step = "" if info.step is None else f"  step {info.step:,}"
        told = f"  learning rate {rate:g}" if rate is not None else f"  no learning rate ({info.note or 'unknown'})"
        lines.append(f"  {posixpath.basename(info.path)}{step}{told}")
    return "\n".join(lines)


def features(directory: str, manifest: FeatureManifest, name: str = "") -> str:
    """What became of a set of examples."""
    size = sum(file.size for file in manifest.files)
    lines = [
        f"{name or 'features'}: {manifest.examples:,} examples, {_bytes(size)} in {_count(len(manifest.files), 'file')} at {directory}"
    ]
    if manifest.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected.items())
        lines.append(f"  {sum(manifest.rejected.values()):,} rejected ({reasons}): see {posixpath.join(directory, 'rejected-*.jsonl')}")
    return "\n".join(lines)


def influence(directory: str, manifest: Manifest) -> str:
    """What scoring wrote."""
    size = sum(file.size for file in manifest.files)
    return f"influence: {_count(manifest.counts['rows'], 'row')} as JSON lines and as Parquet, {_bytes(size)} at {directory}"


def done(started: float, read: int = 0, scored: int = 0) -> str:
    """How long a run took since `started` (of `time.monotonic`), how many examples it read and pairs it scored."""
    told = ([f"read {read:,} examples"] if read else []) + ([f"scored {scored:,} pairs"] if scored else [])
    return f"took {time.monotonic() - started:.1f} s" + (": " + ", ".join(told) if told else "")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
