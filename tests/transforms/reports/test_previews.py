"""Previews: the picture of an example as the model is given it, and what is said where there is
none.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import example, write_records
from transforms.core.origins import Origin
from transforms.examples.batch import digest
from transforms.examples.format import ExampleFormat, InputSpec
from transforms.reports.pictures import encode_picture, to_pixels
from transforms.reports.previews import is_picture
from transforms.reports.read_previews import read_previews

FORM = ExampleFormat((InputSpec("image", (4, 4), "float32"),), labelled=False, keep_keys=("note",))


def origins(path, payloads) -> list[Origin]:
    write_records(path, payloads)
    return [Origin(str(path), i, digest(payload)) for i, payload in enumerate(payloads)]


def payload(i: int, **more) -> bytes:
    return example(image=np.full((4, 4), i / 10, np.float32), note=f"note {i}", **more)


def test_pictures_and_texts_come_from_the_records_that_were_named(tmp_path):
    wanted = origins(tmp_path / "a.tfrecord", [payload(i) for i in range(6)])
    found = dict(read_previews((wanted[0].source, [wanted[4], wanted[1]]), FORM))
    assert [key[1] for key in found] == [1, 4]
    for (_, i), preview in found.items():
        assert preview.problem is None and preview.kept == {"note": f"note {i}"}
        pixels = tf.io.decode_image(preview.picture).numpy()
        assert pixels.shape == (4, 4, 1) and (pixels == round(255 * i / 10)).all()


@pytest.mark.parametrize(
    ("form", "change", "told"),
    [
        (FORM, lambda path: path.unlink(), "cannot be read again"),
        (FORM, lambda path: write_records(path, [payload(3)]), "has changed"),
        (FORM, lambda path: write_records(path, []), "is no longer where it was read"),
        (
            dataclasses.replace(FORM, parse_fn="no_such_module:parse"),
            lambda path: None,
            "no_such_module",
        ),
        (dataclasses.replace(FORM, keep_keys=("other",)), lambda path: None, "'other'"),
    ],
)
def test_what_cannot_be_shown_says_why(tmp_path, form, change, told):
    (wanted,) = origins(tmp_path / "a.tfrecord", [payload(2)])
    change(tmp_path / "a.tfrecord")
    ((_, preview),) = read_previews((wanted.source, [wanted]), form)
    assert preview.picture is None and told in preview.problem


@given(st.sampled_from([(0, 1), (0, 255), (-1, 1), (-3e4, 2e9), (5, 300)]), st.integers(0, 1000))
def test_pixels_keep_the_order_of_the_numbers(limits, seed):
    array = np.random.default_rng(seed).uniform(*limits, (5, 6, 3))
    pixels = to_pixels(array)
    assert pixels.shape == (5, 6, 3) and pixels.dtype == np.uint8
    order = np.argsort(array, axis=None)
    assert (np.diff(pixels.reshape(-1)[order].astype(int)) >= 0).all()
    if limits == (0, 1):
        np.testing.assert_array_equal(pixels, np.rint(array * 255))


def test_numbers_from_0_to_255_are_taken_as_they_are_and_equal_ones_are_no_error():
    array = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.testing.assert_array_equal(to_pixels(array)[..., 0], array)
    np.testing.assert_array_equal(to_pixels(array % 2)[..., 0], array % 2)
    assert (to_pixels(np.full((2, 2), -7.0)) == 0).all()


def test_large_pictures_are_made_smaller_in_their_proportions():
    encoded = encode_picture(np.random.default_rng(0).random((320, 640, 3)))
    assert encoded.startswith(b"\xff\xd8\xff") and tf.io.decode_image(encoded).shape == (80, 160, 3)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((8, 8), True),
        ((8, 8, 3), True),
        ((8, 8, 2), False),
        ((64,), False),
        ((1, 8), False),
        ((4, 8, 8, 3), False),
    ],
)
def test_which_inputs_are_pictures(shape, told):
    assert is_picture(shape) is told
