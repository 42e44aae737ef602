"""Stage 1 of a command: its feature sets, made from the flags, announced and summarised."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping

from pipeline.preparation.configs import from_flags
from pipeline.running.outcomes import read_back
from pipeline.running.progress import Stage
from pipeline.terminal.extraction import checkpoints, features
from transforms.examples.config import ExampleConfig
from transforms.extraction.config import ExtractionConfig
from transforms.extraction.load_model import LoadedModel
from transforms.extraction.prepare import ExtractFeatures
from transforms.storage.manifests import FeatureManifest


def extraction(
    args: argparse.Namespace,
    model: LoadedModel,
    output: str,
    field: str = "examples",
    labels: str = "given",
    base: str | None = None,
    slice_keys: tuple[str, ...] = (),
) -> ExtractFeatures:
    """Prepares the extraction of the examples of the flag `field`, and warns of empty files.

    Args:
        args: the flags.
        model: the loaded checkpoints.
        output: directory of the feature set.
        field: the flag that names the examples.
        labels: `given` or `predicted`.
        base: directory of the feature set whose unchanged records are copied, or None.
        slice_keys: keys that are kept besides those of `keep_keys`.

    Raises:
        InputError: the examples cannot be used, or `output` is complete with other settings.
    """
    config = from_flags(ExampleConfig, args)
    keys = tuple(dict.fromkeys((*config.keep_keys, *slice_keys)))
    extract = ExtractFeatures(
        getattr(args, field),
        model,
        output,
        dataclasses.replace(config, keep_keys=keys),
        dataclasses.replace(from_flags(ExtractionConfig, args), labels=labels, base=base),
        field,
        slice_keys,
    )
    if extract.empty_files:
        first, *others = extract.empty_files
        more = f" and {len(others)} more" if others else ""
        print(
            f"warning: --{field}: {first}{more} is empty, as a writer that died leaves it",
            file=sys.stderr,
        )
    return extract


def announce(model: LoadedModel, extractions: Mapping[str, ExtractFeatures]) -> None:
    """Prints the checkpoints, and which feature sets, by name, are not extracted again."""
    print(checkpoints(model))
    for name, extract in extractions.items():
        if extract.complete:
            print(f"{name}: already complete, used as they are")


def stages(extractions: Iterable[ExtractFeatures]) -> list[Stage]:
    """Returns the stages of the feature sets that are not complete."""
    missing = [extract for extract in extractions if not extract.complete]
    total = sum(extract.bytes_to_read for extract in missing)
    compared = sum(extract.bytes_to_read for extract in missing if extract.stage.base)
    compare = Stage(
        "Compare examples", "example-bytes-compared", compared, "examples-compared", "examples"
    )
    read = Stage("Extract features", "example-bytes-read", total, "examples-extracted", "examples")
    return [*([compare] if compared else []), *([read] if missing else [])]


def summarise(extractions: Mapping[str, ExtractFeatures]) -> tuple[list[FeatureManifest], int]:
    """Prints what became of feature sets, by name.

    Returns:
        Their manifests, and the number of examples that were read for them.

    Raises:
        RunFailed: one of them is not there.
    """
    manifests, read = [], 0
    for name, extract in extractions.items():
        manifest = read_back(extract.output, FeatureManifest)
        print(features(extract.output, manifest, name))
        if not extract.complete:
            read += manifest.counts["examples"] + manifest.counts["rejected"]
        manifests.append(manifest)
    return manifests, read
