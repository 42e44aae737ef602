"""One input of the model out of an example: numbers or an encoded image, in the model's shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from transforms.examples import rejects
from transforms.examples.format import InputSpec
from transforms.examples.rejects import Unusable

# The first bytes of these files.
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def parse_input(value: Any, spec: InputSpec) -> np.ndarray:
    """Returns numbers, or the bytes of a PNG or JPEG image, as an array of the input's shape and
    dtype.

    Raises:
        Unusable: they are not finite numbers that the input can hold, or not so many.
    """
    if isinstance(value, bytes):
        value = _decode_image(value, spec)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"holds {array.dtype}")
    except (TypeError, ValueError) as error:
        raise Unusable(rejects.WRONG_TYPE, f"key {spec.key!r} is not numbers: {error}") from error
    if array.size != math.prod(spec.shape) or not _is_shaped(array, spec):
        raise Unusable(
            rejects.WRONG_SIZE,
            f"key {spec.key!r} has {array.size} numbers of shape {array.shape}, the model's input "
            f"has {spec.shape}",
        )
    if not np.isfinite(array).all():
        raise Unusable(rejects.NON_FINITE_INPUT, f"key {spec.key!r} holds a NaN or an infinity")
    cast = cast_exactly(array, spec)
    if cast is None:
        raise Unusable(
            rejects.WRONG_TYPE,
            f"key {spec.key!r} holds numbers that the model's input of type {spec.dtype} cannot "
            "hold",
        )
    return cast.reshape(spec.shape)


def cast_exactly(array: np.ndarray, spec: InputSpec) -> np.ndarray | None:
    """Returns an array in the input's dtype, or None if an integer dtype would change a number."""
    with np.errstate(invalid="ignore"):
        cast = array.astype(spec.dtype, copy=False)
    return cast if cast.dtype.kind not in "iu" or np.array_equal(cast, array) else None


def _is_shaped(array: np.ndarray, spec: InputSpec) -> bool:
    """Returns whether an array of two axes or more has the input's shape, but for axes of 1.

    As many numbers in another shape are another image.
    """
    if array.ndim < 2 or len(spec.shape) < 2:
        return True
    return [n for n in array.shape if n != 1] == [n for n in spec.shape if n != 1]


def _decode_image(data: bytes, spec: InputSpec) -> np.ndarray:
    if not data.startswith((_JPEG, _PNG)):
        raise Unusable(
            rejects.BAD_IMAGE,
            f"key {spec.key!r} is {len(data)} bytes that are neither PNG nor JPEG: decode them "
            "with `parse_fn`",
        )
    channels = spec.shape[-1] if len(spec.shape) == 3 and spec.shape[-1] in (1, 3, 4) else 0
    try:
        with tf.device("/CPU:0"):
            return tf.io.decode_image(data, channels=channels, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        raise Unusable(
            rejects.BAD_IMAGE,
            f"key {spec.key!r} cannot be decoded: {str(error.message).splitlines()[0]}",
        ) from error
