"""Inputs of a model as pictures: PNG or JPEG files."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# Pixels of a picture's longer side, and up to which size it is kept without loss.
_LONGEST_SIDE = 160

_LOSSLESS_SIDE = 64


def to_pixels(array: np.ndarray) -> np.ndarray:
    """A model's input [H, W] or [H, W, channels] as bytes [H, W, channels].

    Floats from 0 to 1 are scaled by 255, numbers from 0 to 255 taken as they are, and others
    stretched from their lowest to their highest.
    """
    values = array.astype(np.float64).reshape(*array.shape[:2], -1)
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1 and array.dtype.kind == "f":
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) / (high - low or 1) * 255
    return np.rint(values).astype(np.uint8)


def encode_picture(array: np.ndarray) -> bytes:
    """A model's input as a file: PNG where it is small or not opaque, else JPEG, no side longer
    than 160 pixels.
    """
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
