"""Flags as configurations of the library, and stage 1 of a command made from them."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from transforms.examples.config import ExampleConfig
from transforms.extraction.config import ExtractionConfig
from transforms.extraction.load_model import LoadedModel
from transforms.extraction.prepare import ExtractFeatures
from transforms.models.config import ModelConfig


def model_config(args: argparse.Namespace) -> ModelConfig:
    """Returns what the flags say of the model."""
    return ModelConfig(
        checkpoints=args.checkpoints,
        model=args.model,
        imports=args.imports,
        layer=args.layer,
        output_name=args.output_name,
        per_token=args.per_token,
        loss=args.loss,
        learning_rates=args.learning_rates,
        include_bias=args.include_bias,
        share_checkpoints=args.share_checkpoints,
    )


def example_config(args: argparse.Namespace) -> ExampleConfig:
    """Returns what the flags say of examples."""
    return ExampleConfig(
        input_keys=args.input_keys,
        label_key=args.label_key,
        id_key=args.id_key,
        keep_keys=args.keep_keys,
        parse_fn=args.parse_fn,
        allow_truncated_files=args.allow_truncated_files,
    )


def extraction_config(
    args: argparse.Namespace, labels: str, base: str | None = None
) -> ExtractionConfig:
    """Returns what the flags say of an extraction with these labels and this base."""
    return ExtractionConfig(
        labels=labels,
        feature_dtype=args.feature_dtype,
        batch_size=args.batch_size,
        max_rejected_fraction=args.max_rejected_fraction,
        base=base,
        accelerator=args.accelerator,
        overwrite=args.overwrite,
    )


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
    config = example_config(args)
    keys = tuple(dict.fromkeys((*config.keep_keys, *slice_keys)))
    extract = ExtractFeatures(
        getattr(args, field),
        model,
        output,
        dataclasses.replace(config, keep_keys=keys),
        extraction_config(args, labels, base),
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
