"""Reads the previews of examples from the files that hold them; needs TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from transforms.core.errors import InputError
from transforms.core.origins import Origin
from transforms.examples.batch import digest
from transforms.examples.format import ExampleFormat
from transforms.examples.parse_record import parse_example
from transforms.examples.records import records_at
from transforms.examples.rejects import Reject
from transforms.reports.pictures import encode_picture
from transforms.reports.previews import Preview
from transforms.storage import filesystems
from transforms.storage.records.example_wire import Feature
from transforms.storage.records.feature_record import text

# Characters of a kept text that are shown: about ten lines of a card.
_LONGEST_TEXT = 300


def read_previews(
    grouped: tuple[str, Iterable[Origin]], form: ExampleFormat
) -> Iterator[tuple[tuple[str, int], Preview]]:
    """Reads the examples of one file again: ((file, record index), Preview).

    An example that is gone or has changed has a preview that says so.
    """
    source, origins = grouped
    digests = {origin.offset: origin.content_digest for origin in origins}
    try:
        records, problem = records_at(source, digests), "is no longer where it was read"
    except (*filesystems.STORE_ERRORS, ValueError) as error:
        records, problem = {}, f"cannot be read again ({filesystems.describe_error(error)})"
    for offset in sorted(digests):
        if offset not in records:
            preview = Preview(problem=problem)
        elif digest(records[offset]) != digests[offset]:
            preview = Preview(problem="has changed since its features were extracted")
        else:
            preview = _preview(records[offset], source, offset, form)
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
    content = text(Feature.parse(feature.SerializeToString()))
    return content if len(content) <= _LONGEST_TEXT else content[:_LONGEST_TEXT] + "…"
