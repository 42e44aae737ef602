"""Pictures of a model's inputs: PNG or JPEG files."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# Pixels of the longer side of a picture: sharp at the size of a card, and a few KB each.
_LONGEST_SIDE = 160
# Pixels of the longer side up to which a picture is a PNG; JPEG's blocks would show.
_LOSSLESS_SIDE = 64
# Quality of a JPEG, from 0 to 100.
_QUALITY = 85


def to_pixels(array: np.ndarray) -> np.ndarray:
    """Returns a model's input [H, W] or [H, W, channels] as pixels [H, W, channels] uint8.

    Floats from 0 to 1 are multiplied by 255, numbers from 0 to 255 are kept, and others are
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
    """Encodes a model's input as a file, with no side longer than 160 pixels: PNG where it is small
    or has an opacity, else JPEG.
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
            encoded = tf.io.encode_jpeg(pixels, quality=_QUALITY)
    picture: bytes = encoded.numpy()
    return picture
