"""What a person sees of an example: its picture, and the texts that are kept of it, read again
where the example came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transforms.core.errors import InputError
from transforms.core.origins import Origin
from transforms.examples.batch import digest
from transforms.examples.format import ExampleFormat, InputSpec
from transforms.examples.parse_record import parse_example
from transforms.examples.records import records_at
from transforms.examples.rejects import Reject
from transforms.reports.pictures import encode_picture, is_picture
from transforms.storage import filesystems
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_record import text

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


def preview_format(found: FeatureManifest) -> ExampleFormat | None:
    """How to read what there is to see of a feature set's examples: their first picture and what
    was kept. None where that is nothing.
    """
    pictures = [
        InputSpec(one["key"], tuple(one["shape"]), one["dtype"])
        for one in found.inputs
        if is_picture(tuple(one["shape"]))
    ]
    kept = tuple(found.settings.get("keep_keys", ()))
    if not pictures and not kept:
        return None
    return ExampleFormat(
        tuple(pictures[:1]), labelled=False, keep_keys=kept, parse_fn=found.settings.get("parse_fn")
    )


def why_no_pictures(found: FeatureManifest) -> str | None:
    """Why nothing of a feature set's inputs can be shown, or None where something can."""
    if not found.inputs:
        return (
            "There are no pictures: the features were extracted by an earlier version, which "
            "does not tell what the inputs are."
        )
    shapes = [tuple(one["shape"]) for one in found.inputs]
    if any(map(is_picture, shapes)):
        return None
    return (
        f"There are no pictures: the model's inputs have the shapes {', '.join(map(str, shapes))}."
    )


def read_previews(
    grouped: tuple[str, Iterable[Origin]], form: ExampleFormat
) -> Iterator[tuple[tuple[str, int], Preview]]:
    """Reads the examples of one file again, by (file, record index). What is gone or has changed
    has a preview that says so.
    """
    source, origins = grouped
    wanted = {origin.offset: origin.content_digest for origin in origins}
    try:
        found, problem = records_at(source, wanted), "is no longer where it was read"
    except (*filesystems.STORE_ERRORS, ValueError) as error:
        found, problem = {}, f"cannot be read again ({filesystems.describe_error(error)})"
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
