"""Batches parsed at once hold what parsing their records singly gives, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import example
from tests.sample_examples import (
    FILE,
    FORM,
    PIXELS,
    SIX,
    batch_of,
    encoded,
    floats,
    ids,
    pixels,
    rejected,
)
from transforms.examples import rejects
from transforms.examples.batch import ExampleBatch, ParsedExample, digest
from transforms.examples.format import ExampleFormat, InputSpec
from transforms.examples.parse_batch import BatchParser
from transforms.examples.parse_record import parse_example
from transforms.examples.rejects import Reject


def check_against_single(batch: ExampleBatch, form: ExampleFormat, serialized: list[bytes]) -> None:
    """A batch holds exactly what parsing its records one by one gives, bit for bit and in order."""
    outcomes = [
        parse_example(record, FILE.name, 10 + i, FILE.path, form)
        for i, record in enumerate(serialized)
    ]
    good = [
        (i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, ParsedExample)
    ]
    assert ids(batch) == [outcome.example_id for _, outcome in good]
    assert batch.offsets.tolist() == [10 + i for i, _ in good]
    assert [row.tobytes() for row in batch.digests] == [digest(serialized[i]) for i, _ in good]
    assert [*batch.kept] == [*form.keep_keys]
    for key, kept in batch.kept.items():
        assert list(map(tf.train.Feature.FromString, kept)) == [
            outcome.kept[key] for _, outcome in good
        ]
    assert batch.rejects == [outcome for outcome in outcomes if isinstance(outcome, Reject)]
    for j, spec in enumerate(form.inputs):
        assert batch.inputs[j].dtype == spec.dtype
        assert batch.inputs[j].shape == (len(good), *spec.shape)
        assert batch.inputs[j].tobytes() == b"".join(
            outcome.inputs[j].tobytes() for _, outcome in good
        )
    if form.labelled:
        assert batch.labels is not None and batch.labels.dtype == np.float64
        assert batch.labels.shape == (len(good), form.label_width)
        assert batch.labels.tolist() == [
            outcome.label.tolist() for _, outcome in good if outcome.label is not None
        ]
    else:
        assert batch.labels is None


WHOLE = ExampleFormat((InputSpec("image", (6,), "uint8"),), label_width=2)


@pytest.mark.parametrize(
    ("form", "serialized"),
    [
        (FORM, floats(9)),
        (ExampleFormat((PIXELS,), id_key="id"), floats(9, id=lambda i: f"ex-{i}")),
        (ExampleFormat((PIXELS,), id_key="id"), floats(9, id=lambda i: i - 4)),
        (ExampleFormat((PIXELS,), labelled=False), floats(9)),
        (ExampleFormat((PIXELS, InputSpec("rank", (), "int32"))), floats(9, rank=lambda i: i)),
        (
            ExampleFormat((InputSpec("image", (6,), "uint8"),), label_width=2),
            [example(image=range(i, i + 6), label=[0.5, i]) for i in range(5)],
        ),
    ],
    ids=["file ids", "text ids", "number ids", "no labels", "two inputs", "ints and vector labels"],
)
def test_a_clean_batch_is_parsed_at_once_and_equals_single_parsing(
    form: ExampleFormat, serialized: list[bytes]
) -> None:
    parser = BatchParser(form, FILE)
    batch = parser.parse_at_once(serialized, range(10, 10 + len(serialized)))
    assert batch is not None, "parsed singly"
    check_against_single(batch, form, serialized)
    check_against_single(batch_of(form, serialized, parser), form, serialized)


BAD = {
    "not an example": b"\xff\xff",
    "missing key": example(label=1, id="m"),
    "size": example(image=[1.0], label=1, id="s"),
    "type": example(
        image=[1, 2, 3, 4, 5, 6], label=1, id="t"
    ),  # whole numbers: usable, but not by the fast path
    "nan": example(image=[np.nan] * 6, label=1, id="n"),
    "image": example(image=b"GIF", label=1, id="i"),
    "label": example(image=SIX, label=[1, 2], id="l"),
    "id": example(image=SIX, label=1, id=b"\xff"),
    "empty id": example(image=SIX, label=1, id=""),
    "NUL in an id": example(image=SIX, label=1, id="a\0b"),
}


@pytest.mark.parametrize("position", [0, 4, 8])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_changes_no_bit_of_its_neighbours(kind: str, position: int) -> None:
    form = ExampleFormat((PIXELS,), id_key="id")
    clean = floats(8, id=lambda i: f"ex-{i}")
    mixed = [*clean[:position], BAD[kind], *clean[position:]]
    parser = BatchParser(form, FILE)
    batch = batch_of(form, mixed, parser)
    check_against_single(batch, form, mixed)
    whole = batch_of(form, clean)
    rows = [i for i, example_id in enumerate(ids(batch)) if example_id.startswith("ex-")]
    assert batch.inputs[0][rows].tobytes() == whole.inputs[0].tobytes()
    assert [ids(batch)[i] for i in rows] == ids(whole)
    # The parser is none the worse for it.
    check_against_single(batch_of(form, clean, parser), form, clean)


def test_ids_that_only_together_are_utf_8_are_rejected() -> None:
    form = ExampleFormat((PIXELS,), id_key="id")
    halves = [example(image=SIX, label=1, id=half) for half in (b"\xc3", b"\xa9")]
    check_against_single(batch_of(form, halves), form, halves)
    assert ids(batch_of(form, halves)) == []


def test_records_of_another_layout_are_parsed_at_once_again_after_the_first_batch() -> None:
    parser = BatchParser(FORM, FILE)
    batch_of(FORM, floats(3), parser)
    whole_numbers = [example(image=range(i, i + 6), label=1) for i in range(3)]
    assert parser.parse_at_once(whole_numbers, range(10, 13)) is None
    parser = BatchParser(FORM, FILE)
    batch_of(FORM, floats(3), parser)
    check_against_single(batch_of(FORM, whole_numbers, parser), FORM, whole_numbers)
    batch = parser.parse_at_once(whole_numbers, range(10, 13))
    assert batch is not None, "parsed singly"
    check_against_single(batch, FORM, whole_numbers)


def test_a_batch_without_a_good_record_is_empty_and_keeps_its_shapes() -> None:
    batch = batch_of(FORM, [BAD["size"], BAD["nan"]])
    assert batch.inputs[0].shape == (0, 2, 3) and batch.inputs[0].dtype == np.float32
    assert batch.labels is not None and batch.labels.shape == (0, 1)
    assert [reject.offset for reject in batch.rejects] == [10, 11]


def test_images_and_kept_keys_go_through_batches() -> None:
    image = pixels(1)
    form = ExampleFormat((InputSpec("image", image.shape, "uint8"),), keep_keys=("city",))
    serialized = [example(image=encoded(image + i, "PNG"), label=i, city=f"c{i}") for i in range(5)]
    check_against_single(batch_of(form, serialized), form, serialized)


@pytest.mark.parametrize("value", [256, -1, 0.5])
def test_a_number_that_the_input_cannot_hold_is_rejected_and_not_wrapped(value: float) -> None:
    form = ExampleFormat((InputSpec("image", (2,), "uint8"),))
    good, bad = (
        example(image=np.array([7, 255]), label=0),
        example(image=np.array([0, value]), label=0),
    )
    assert rejected(bad, form).reason == rejects.WRONG_TYPE
    assert "cannot hold" in rejected(bad, form).detail
    batch = batch_of(form, [good, good, bad])
    assert [reject.reason for reject in batch.rejects] == [rejects.WRONG_TYPE]
    assert [array.tolist() for array in batch.inputs] == [[[7, 255], [7, 255]]]


def test_an_id_that_is_too_long_is_rejected_on_both_paths() -> None:
    form = ExampleFormat((PIXELS,), id_key="id")
    fits, too_long = (example(image=SIX, label=1, id="é" * n) for n in (256, 257))
    assert rejected(too_long, form).reason == rejects.BAD_ID
    batch = batch_of(form, [fits, too_long])
    assert (ids(batch), [reject.reason for reject in batch.rejects]) == (
        ["é" * 256],
        [rejects.BAD_ID],
    )
