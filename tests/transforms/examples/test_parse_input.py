"""Every kind of input: lists of numbers, PNG, JPEG, and what is no input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.sample_examples import encoded, pixels
from transforms.examples import rejects
from transforms.examples.format import InputSpec
from transforms.examples.parse_input import cast_exactly, parse_input
from transforms.examples.rejects import Unusable


def spec(shape: tuple[int, ...], dtype: str) -> InputSpec:
    return InputSpec("image", shape, dtype)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32"])
@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, 2, 3, 4, 5]])
def test_number_lists_take_the_models_shape_and_dtype(values: list[Any], dtype: str) -> None:
    array = parse_input(np.array(values), spec((2, 3), dtype))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_decoded_exactly(channels: int, dtype: str) -> None:
    image = pixels(channels)
    array = parse_input(encoded(image, "PNG"), spec(image.shape, dtype))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, image)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_decoded_as_tensorflow_decodes_it(channels: int) -> None:
    image = pixels(channels)
    data = encoded(image, "JPEG")
    array = parse_input(data, spec(image.shape, "uint8"))
    np.testing.assert_array_equal(array, tf.io.decode_jpeg(data, channels).numpy())
    assert np.abs(array.astype(int) - image).max() < 16


def test_a_grey_image_feeds_an_rgb_model_and_an_rgb_image_a_grey_one() -> None:
    grey, rgb = pixels(1), np.repeat(pixels(1), 3, axis=-1)
    array = parse_input(encoded(grey, "PNG"), spec(rgb.shape, "uint8"))
    np.testing.assert_array_equal(array, rgb)
    array = parse_input(encoded(rgb, "PNG"), spec(grey.shape, "uint8"))
    assert np.abs(array.astype(int) - grey).max() <= 1  # the decoder weighs the channels


@pytest.mark.parametrize("shape", [(8, 12), (96,)])
def test_a_grey_image_feeds_a_model_without_channels(shape: tuple[int, ...]) -> None:
    image = pixels(1)
    array = parse_input(encoded(image, "PNG"), spec(shape, "float32"))
    np.testing.assert_array_equal(array, image.reshape(shape))


def test_an_image_of_another_shape_with_as_many_pixels_is_not_scrambled() -> None:
    with pytest.raises(Unusable) as caught:
        parse_input(encoded(pixels(1), "PNG"), spec((12, 8, 1), "uint8"))
    assert caught.value.reason == rejects.WRONG_SIZE
    assert "(8, 12, 1)" in caught.value.detail and "(12, 8, 1)" in caught.value.detail


def test_an_array_of_as_many_numbers_in_another_shape_is_rejected() -> None:
    with pytest.raises(Unusable) as caught:
        parse_input(np.zeros((3, 4, 5)), spec((4, 5, 3), "float32"))
    assert caught.value.reason == rejects.WRONG_SIZE


def test_only_whole_numbers_that_fit_are_cast_to_an_integer_dtype() -> None:
    small = InputSpec("image", (2,), "uint8")
    cast = cast_exactly(np.array([7.0, 255.0]), small)
    assert cast is not None and cast.dtype == np.uint8 and cast.tolist() == [7, 255]
    for value in (0.5, 256.0, -1.0, np.nan):
        assert cast_exactly(np.array([0.0, value]), small) is None
    assert cast_exactly(np.array([0.5]), InputSpec("image", (1,), "float32")) == [0.5]
