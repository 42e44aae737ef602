"""Pictures: pixels in the order of the numbers, and files of a bounded size."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from transforms.reports.pictures import encode_picture, to_pixels


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


def test_small_pictures_and_those_with_opacity_are_exact():
    rng = np.random.default_rng(0)
    for shape in ((64, 20, 3), (100, 120, 4)):
        array = rng.integers(0, 256, shape, np.uint8)
        encoded = encode_picture(array)
        assert encoded.startswith(b"\x89PNG")
        np.testing.assert_array_equal(tf.io.decode_image(encoded).numpy(), array)
