"""Previews of examples: a picture, and the texts of kept keys, or the reason why there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from transforms.examples.format import ExampleFormat, InputSpec
from transforms.storage.manifests import FeatureManifest

# The problem of previews that are read where TensorFlow is not installed.
NO_TENSORFLOW = "cannot be read without TensorFlow"


@dataclasses.dataclass(frozen=True)
class Preview:
    """The preview of an example.

    Attributes:
        picture: a PNG or JPEG file, or None.
        kept: the kept keys as text.
        problem: why there is nothing to see, or None.
    """

    picture: bytes | None = None
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str | None = None


def is_picture(shape: tuple[int, ...]) -> bool:
    """Returns whether arrays of a shape can be shown: [H, W], or [H, W, channels] in grey, colour,
    or colour with opacity.
    """
    return (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))) and min(shape[:2]) > 1


def preview_format(manifest: FeatureManifest) -> ExampleFormat | None:
    """Returns how to read the previews of a feature set's examples, their first picture and their
    kept keys; None where they have neither.
    """
    pictures = [
        InputSpec(spec["key"], tuple(spec["shape"]), spec["dtype"])
        for spec in manifest.inputs
        if is_picture(tuple(spec["shape"]))
    ]
    kept = tuple(manifest.settings.get("keep_keys", ()))
    if not pictures and not kept:
        return None
    return ExampleFormat(
        tuple(pictures[:1]),
        labelled=False,
        keep_keys=kept,
        parse_fn=manifest.settings.get("parse_fn"),
    )


def why_no_pictures(manifest: FeatureManifest) -> str | None:
    """Returns why no input of a feature set can be shown, or None where one can."""
    if not manifest.inputs:
        return (
            "There are no pictures: the features were extracted by an earlier version, which did "
            "not record the inputs of the model."
        )
    shapes = [tuple(spec["shape"]) for spec in manifest.inputs]
    if any(map(is_picture, shapes)):
        return None
    return (
        f"There are no pictures: the model's inputs have the shapes {', '.join(map(str, shapes))}."
    )
