"""Serialized examples, good and bad, and how tests parse them."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import CLASSES, Tiny, damage, example, write_records
from transforms.examples import rejects
from transforms.examples.batch import ExampleBatch, ParsedExample
from transforms.examples.format import ExampleFormat, InputFile, InputSpec
from transforms.examples.parse_batch import BatchParser
from transforms.examples.parse_record import parse_example
from transforms.examples.rejects import Reject

PIXELS = InputSpec("image", (2, 3), "float32")


FORM = ExampleFormat((PIXELS,))


SIX = [0.5, 1.5, -2.0, 3.0, 4.0, 5.0]


FILE = InputFile(0, "/data/train/a", "train/a", 0)


def parse(serialized: bytes, form: ExampleFormat = FORM) -> ParsedExample | Reject:
    """Parses record 7 of a file."""
    return parse_example(serialized, "train/a", 7, "/data/train/a", form)


def parsed(serialized: bytes, form: ExampleFormat = FORM) -> ParsedExample:
    """Parses a record that is good."""
    outcome = parse(serialized, form)
    assert isinstance(outcome, ParsedExample), outcome
    return outcome


def rejected(serialized: bytes, form: ExampleFormat = FORM) -> Reject:
    """Parses a record that is not."""
    outcome = parse(serialized, form)
    assert isinstance(outcome, Reject), outcome
    assert (outcome.source, outcome.offset) == ("/data/train/a", 7)
    return outcome


def pixels(channels: int) -> np.ndarray:
    """A picture [8, 12, channels]."""
    rng = np.random.default_rng(4)
    # Smooth, so that JPEG changes little.
    base = np.linspace(40, 200, 8 * 12).reshape(8, 12, 1) + rng.uniform(0, 4, channels) * 10
    return base.astype(np.uint8)


def encoded(image: np.ndarray, kind: str) -> bytes:
    """A picture as a PNG or JPEG file."""
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
        out, kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    return out.getvalue()


def batch_of(
    form: ExampleFormat, serialized: list[bytes], parser: BatchParser | None = None
) -> ExampleBatch:
    """Parses records 10, 11, … of a file as a batch."""
    return (parser or BatchParser(form, FILE)).parse(serialized, range(10, 10 + len(serialized)))


def ids(batch: ExampleBatch) -> list[str]:
    """The ids of a batch, as text."""
    return [example_id.decode() for example_id in batch.example_ids.tolist()]


def floats(n: int, **more: Any) -> list[bytes]:
    """Good examples, with further keys."""
    rng = np.random.default_rng(2)
    return [
        example(
            image=rng.normal(size=6).astype(np.float32),
            label=i % 3,
            **{k: v(i) for k, v in more.items()},
        )
        for i in range(n)
    ]


def input_file(path: pathlib.Path, name: str = "train/a") -> InputFile:
    """A file of examples."""
    return InputFile(0, str(path), name, path.stat().st_size)


def with_bad(
    tiny: Tiny, directory: pathlib.Path
) -> tuple[pathlib.Path, list[tuple[int, str | None, str]]]:
    """Forty records of which six cannot be used, in two files; and (index, id, reason) of these in
    their file.
    """
    image = tiny.images[0]
    nan = image.copy()
    nan[1, 2, 0] = np.nan
    bad = {
        2: (example(picture=image, label=0, id="no-image"), "no-image", rejects.MISSING_KEY),
        5: (example(image=image.ravel()[:-1], label=0, id="short"), "short", rejects.WRONG_SIZE),
        6: (example(image=image, label=CLASSES, id="label-3"), "label-3", rejects.BAD_LABEL),
        9: (example(image=nan, label=0, id="nan"), "nan", rejects.NON_FINITE_INPUT),
        11: (example(image=b"\x89PNG\r\n\x1a\n", label=0, id="png"), "png", rejects.BAD_IMAGE),
        13: (b"\xff\xff\xff", None, rejects.NOT_AN_EXAMPLE),
    }
    payloads = tiny.payloads()
    first = [bad[i][0] if i in bad else payloads[i] for i in range(20)]
    path = write_records(directory / "s-0", first)
    damage(path, sum(len(payload) + 16 for payload in first[:15]) + 12)
    write_records(directory / "s-1", payloads[20:])
    return path, sorted(
        [(i, example_id, reason) for i, (_, example_id, reason) in bad.items()]
        + [(15, None, rejects.BAD_CHECKSUM)]
    )
