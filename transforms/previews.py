"""What a person sees of an example: its picture, and the texts that are kept of it, read again where the example came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from transforms import files
from transforms.errors import InputError
from transforms.examples import ExampleFormat, InputSpec, digest, parse_example, records_at
from transforms.manifest import FeatureManifest
from transforms.records import Origin, text
from transforms.rejects import Reject

# Pixels of a picture's longer side, and up to which size it is kept without loss.
_LONGEST_SIDE = 160
_LOSSLESS_SIDE = 64
_LONGEST_TEXT = 300


@dataclasses.dataclass(frozen=True)
class Preview:
    """What there is to see of an example.

    Attributes:
        picture: a PNG or JPEG file, or None.
        kept: what is kept of the example besides, by key, as text.
        problem: why there is nothing, or None.
    """

    picture: bytes | None = None
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str | None = None


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether arrays of a shape can be shown: [H, W], or [H, W, channels] in grey, colour, or colour with opacity."""
    return (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))) and min(shape[:2]) > 1


def preview_format(found: FeatureManifest) -> ExampleFormat | None:
    """How to read what there is to see of a feature set's examples: their first picture and what was kept. None where that is nothing."""
    pictures = [InputSpec(one["key"], tuple(one["shape"]), one["dtype"]) for one in found.inputs if is_picture(tuple(one["shape"]))]
    kept = tuple(found.settings.get("keep_keys", ()))
    if not pictures and not kept:
        return None
    return ExampleFormat(tuple(pictures[:1]), labelled=False, keep_keys=kept, parse_fn=found.settings.get("parse_fn"))


def why_no_pictures(found: FeatureManifest) -> str | None:
    """Why nothing of a feature set's inputs can be shown, or None where something can."""
    if not found.inputs:
        return "There are no pictures: the features were extracted by an earlier version, which does not tell what the inputs are."
    shapes = [tuple(one["shape"]) for one in found.inputs]
    if any(map(is_picture, shapes)):
        return None
    return f"There are no pictures: the model's inputs have the shapes {', '.join(map(str, shapes))}."


def read_previews(grouped: tuple[str, Iterable[Origin]], form: ExampleFormat) -> Iterator[tuple[tuple[str, int], Preview]]:
    """Reads the examples of one file again, by (file, record index). What is gone or has changed has a preview that says so."""
    source, origins = grouped
    wanted = {origin.offset: origin.content_digest for origin in origins}
    try:
        found, problem = records_at(source, wanted), "is no longer where it was read"
    except (*files.STORE_ERRORS, ValueError) as error:
        found, problem = {}, f"cannot be read again ({files.told(error)})"
    for offset in sorted(wanted):
        if offset not in found:
            preview = Preview(problem=problem)
        elif digest(found[offset]) != wanted[offset]:
            preview = Preview(problem="has changed since its features were extracted")
        else:
            preview = _preview(found[offset], source, offset, form)
        yield (source, offset), preview


def _preview(serialized: bytes, source: str, offset: int, form: ExampleFormat) -> Preview:
    try:
        example = parse_example(serialized, source.rpartition("/")[2], offset, source, form)
    except InputError as error:  # the parsing function is not at hand here
        return Preview(problem=str(error))
    if isinstance(example, Reject):
        return Preview(problem=example.detail)
    kept = {key: _text(value) for key, value in example.kept.items()}
    return Preview(encode_picture(example.inputs[0]) if example.inputs else None, kept)


def _text(feature: Any) -> str:
    told = text(feature)
    return told if len(told) <= _LONGEST_TEXT else told[:_LONGEST_TEXT] + "…"


def to_pixels(array: np.ndarray) -> np.ndarray:
    """A model's input [H, W] or [H, W, channels] as bytes [H, W, channels].

    Floats from 0 to 1 are scaled by 255, numbers from 0 to 255 taken as they are, and others stretched from their lowest to their highest.
    """
    values = array.astype(np.float64).reshape(*array.shape[:2], -1)
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1 and array.dtype.kind == "f":
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) / (high - low or 1) * 255
    return np.rint(values).astype(np.uint8)


def encode_picture(array: np.ndarray) -> bytes:
    """A model's input as a file: PNG where it is small or not opaque, else JPEG, no side longer than 160 pixels."""
    pixels = to_pixels(array)
    height, width, channels = pixels.shape
    scale = _LONGEST_SIDE / max(height, width)
    with tf.device("/CPU:0"):
        if scale < 1:
            size = [max(1, round(height * scale)), max(1, round(width * scale))]
            pixels = np.rint(tf.image.resize(pixels, size, method="area").numpy()).astype(np.uint8)
        if channels == 4 or max(height, width) <= _LOSSLESS_SIDE:
            encoded = tf.io.encode_png(pixels)
        else:
            encoded = tf.io.encode_jpeg(pixels, quality=85)
    picture: bytes = encoded.numpy()
    return picture
