"""Columns of records: the arrays that TensorFlow parses, however a record was written, and an error
that names the record where it cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import feature
from transforms.core.features import DTYPES, NO_LABEL, Features
from transforms.core.origins import Origin
from transforms.storage.records import feature_record
from transforms.storage.records.example_columns import ArrayContent, DamagedRecord, ExampleColumns
from transforms.storage.records.example_wire import (
    BYTES_LIST,
    FLOAT_LIST,
    INT64_LIST,
    entry_head,
    serialize_example,
    varint,
)


def by_tensorflow(
    serialized: Sequence[bytes], t: int, c: int, d: int, whole: bool, dtype: str
) -> dict[str, np.ndarray]:
    """What TensorFlow parses of feature records."""
    label = tf.io.RaggedFeature(tf.int64 if whole else tf.float32)
    text = tf.io.FixedLenFeature([], tf.string)
    parsed = tf.io.parse_example(
        tf.constant(serialized, tf.string, shape=[len(serialized)]),
        {
            "example_id": text,
            "label": label,
            "prediction": label,
            "probability": tf.io.FixedLenFeature([], tf.float32),
            "label_probability": tf.io.FixedLenFeature([t], tf.float32),
            "loss_grads": text,
            "activations": text,
            "loss_grad_norms": text,
            "activation_norms": text,
        },
    )
    arrays = {
        name: tf.cast(tf.io.decode_raw(parsed[name], kind), wanted).numpy().reshape(shape)
        for name, kind, wanted, shape in (
            ("loss_grads", tf.as_dtype(dtype), tf.float32, (-1, t, c)),
            ("activations", tf.as_dtype(dtype), tf.float32, (-1, t, d)),
            ("loss_grad_norms", tf.float64, tf.float64, (-1, t)),
            ("activation_norms", tf.float64, tf.float64, (-1, t)),
        )
    }
    for name in ("label", "prediction"):
        padded = parsed[name].to_tensor(default_value=NO_LABEL).numpy()
        if not padded.shape[1]:
            padded = np.full((len(padded), 1), NO_LABEL, padded.dtype)
        arrays[f"{name}s"] = padded if whole else padded.astype(np.float64)
    return arrays | {
        "example_ids": np.array(parsed["example_id"].numpy().tolist(), np.bytes_),
        "probabilities": parsed["probability"].numpy(),
        "label_probabilities": parsed["label_probability"].numpy(),
    }


def message(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(content)) + content


def unpacked(value: bytes) -> bytes:
    """A serialized feature as writers before packed lists wrote it, one field for each number."""
    parsed = tf.train.Feature.FromString(value)
    kind = parsed.WhichOneof("kind")
    if kind == "int64_list":
        numbers = b"".join(b"\x08" + varint(number) for number in parsed.int64_list.value)
        return message(INT64_LIST, numbers)
    if kind == "float_list":
        numbers = np.array(parsed.float_list.value, "<f4")
        return message(FLOAT_LIST, b"".join(b"\x0d" + number.tobytes() for number in numbers))
    return value


def written_otherwise(data: st.DataObject, serialized: bytes) -> bytes:
    """The same record with its keys in another order, twice, among others, or lists unpacked."""
    features = tf.train.Example.FromString(serialized).features.feature
    entries = [(key.encode(), value.SerializeToString()) for key, value in sorted(features.items())]
    entries = data.draw(st.permutations(entries))
    how = data.draw(st.sets(st.sampled_from(["unknown", "twice", "unpacked", "parts"])))
    if "unknown" in how:
        at = data.draw(st.integers(0, len(entries)))
        entries.insert(at, (b"some-other-key", feature([1.5, 2.5]).SerializeToString()))
    if "unpacked" in how:
        entries = [(key, unpacked(value)) for key, value in entries]
    if "twice" in how:
        key, _ = entries[data.draw(st.integers(0, len(entries) - 1))]
        entries.insert(0, (key, feature(b"not this").SerializeToString()))
    messages = [message(1, message(1, key) + message(2, value)) for key, value in entries]
    if "parts" in how:
        return message(1, b"".join(messages[:3])) + message(1, b"".join(messages[3:]))
    return message(1, b"".join(messages))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_records_are_parsed_as_tensorflow_parses_them(data: st.DataObject) -> None:
    n, t, c, d = (data.draw(st.integers(1, high)) for high in (9, 3, 40, 20))
    task = data.draw(st.sampled_from(["multi-class", "binary", "multi-label", "regression"]))
    dtype = data.draw(st.sampled_from([*DTYPES]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    labels = {
        "multi-class": rng.integers(0, 10 ** rng.integers(1, 12), (n, 1)),
        "binary": rng.integers(0, 2, (n, 1)),
        "multi-label": np.where(rng.random((n, 4)) < 0.6, rng.integers(0, 300, (n, 4)), NO_LABEL),
        "regression": rng.normal(size=(n, 2)).astype(np.float32).astype(np.float64),
    }[task]
    features = Features.of(
        [data.draw(st.text(min_size=1, max_size=200)).encode().strip(b"\0") or b"x"] * n
        if data.draw(st.booleans())
        else [b"id-%d" % 10**i for i in range(n)],
        labels,
        labels[::-1].copy(),
        rng.random(n),
        rng.random((n, t)),
        rng.normal(size=(n, t, c)) * 10.0 ** rng.integers(-9, 5, (n, 1, 1)),
        rng.normal(size=(n, t, d)),
        dtype,
    )
    kept = {"city": feature(b"Ulm"), "zip": feature(89073)} if data.draw(st.booleans()) else {}
    origins = [Origin(f"gs://b/{i}", 3**i, bytes(16), kept) for i in range(n)]
    serialized = feature_record.encode(features, origins, dtype)
    odd = data.draw(st.sets(st.integers(0, n - 1)))
    serialized = [
        written_otherwise(data, record) if i in odd else record
        for i, record in enumerate(serialized)
    ]
    whole = task != "regression"
    found = feature_record.decode(serialized, t, c, d, whole, dtype)
    for name, expected in by_tensorflow(serialized, t, c, d, whole, dtype).items():
        array = getattr(found, name)
        assert array.dtype == expected.dtype and array.shape == expected.shape, name
        assert array.tobytes() == expected.tobytes(), name
    assert feature_record.origins(serialized) == [
        Origin(origin.source, origin.offset, origin.content_digest) for origin in origins
    ]
    assert feature_record.example_ids(serialized) == features.example_ids.tolist()


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_a_short_dtype_is_the_float32_of_the_same_value(kind) -> None:
    stored = np.arange(2**16, dtype=np.uint16).view(kind)
    records = [serialize_example(entry_head(b"x", BYTES_LIST, 2**17), stored.tobytes())] * 2
    array = ArrayContent(BYTES_LIST, np.dtype(kind), 2**16)
    found = ExampleColumns(records, {}, {"x": array}).arrays["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[1], stored.astype(np.float32))
    assert (np.signbit(found[1]) == np.signbit(stored.astype(np.float32))).all()


def test_more_records_than_are_walked_together_are_parsed_in_order() -> None:
    # More than one piece of 8 MB, of many lengths.
    records = [
        serialize_example(
            entry_head(b"x", BYTES_LIST, 50_000), bytes([i]) * 50_000, number_entry(b"y", 3**i)
        )
        for i in range(30)
    ] * 9
    array = ArrayContent(BYTES_LIST, np.dtype(np.float32), 12_500)
    columns = ExampleColumns(records, {"y": INT64_LIST}, {"x": array})
    assert columns.arrays["x"].view(np.uint8)[:, 7].tolist() == [*range(30)] * 9
    values, counts = columns.number_lists("y", 0)
    assert values.tolist() == [[3**i] for i in range(30)] * 9 and (counts == 1).all()


def number_entry(key: bytes, value: int) -> bytes:
    content = varint(value)
    return entry_head(key, INT64_LIST, len(content)) + content


def test_lists_without_numbers_are_empty_whether_their_key_is_there_or_not() -> None:
    there, empty = number_entry(b"y", 5), entry_head(b"y", INT64_LIST, 0)
    without_kind = message(1, message(1, b"y") + message(2, b""))
    records = [serialize_example(entry) for entry in (there, empty, without_kind, b"", there)]
    for order in (records, records[::-1], records[1:]):
        values, counts = ExampleColumns(order, {"y": INT64_LIST}).number_lists("y", -1)
        assert values.reshape(-1).tolist() == [5 if count else -1 for count in counts.tolist()]
        assert counts.sum() == sum(record == records[0] for record in order)


def record_of(**values) -> bytes:
    keys = {key: feature(value) for key, value in values.items()}
    message_of_keys = tf.train.Example(features=tf.train.Features(feature=keys))
    # Tests are named by it, and every process must name them alike.
    return message_of_keys.SerializeToString(deterministic=True)


KINDS = {"x": BYTES_LIST, "y": INT64_LIST, "z": FLOAT_LIST}
GOOD = record_of(x=b"text", y=7, z=0.5)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record_of(y=7, z=0.5), "no 'x'"),
        (record_of(x=[b"a", b"b"], y=7, z=0.5), "2 byte strings"),
        (record_of(x=b"text", y=b"7", z=0.5), "'y' is a list of byte strings, expected integers"),
        (GOOD[:-1], "before its message ends"),
        (b"\x0a\xff\xff\xff\xff\x7f" + GOOD[2:], "before its message ends"),
        (b"\x0a" + b"\xff" * 11 + GOOD, "does not end within 10 bytes"),
        (b"\x0f" + GOOD, "wire type 7"),
        (b"\x02\x00" + GOOD, "field number 0"),
        (GOOD.replace(b"\x0a\x01\x07", b"\x0a\x01\x87"), "does not end"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_damaged_record_is_named(bad: bytes, reason: str, before: int) -> None:
    records = [GOOD] * before + [bad, GOOD]
    with pytest.raises(DamagedRecord, match=reason) as caught:
        ExampleColumns(records, KINDS).number_lists("y", 0)
    assert caught.value.index == before


def test_an_array_of_another_size_is_refused() -> None:
    array = ArrayContent(BYTES_LIST, np.dtype(np.float32), 1)
    assert ExampleColumns([GOOD], {}, {"x": array}).arrays["x"].shape == (1, 1)
    with pytest.raises(DamagedRecord, match="'x' has 6 bytes, expected 4: 1 numbers of float32"):
        ExampleColumns([GOOD, record_of(x=b"longer", y=7, z=0.5)], {}, {"x": array})


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_damage_does_more_than_raise(data: st.DataObject) -> None:
    # Bytes changed, cut off or put in: every record is parsed as the library parses it, or refused.
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] = data.draw(st.integers(0, 255))
        else:
            damaged[at:] = damaged[at:][data.draw(st.integers(0, 3)) :]
        if not damaged:
            break
    try:
        columns = ExampleColumns([GOOD, bytes(damaged), GOOD], KINDS)
        (x, y, z) = (
            columns.string_list("x"),
            columns.number_lists("y", 0),
            columns.number_lists("z", 0),
        )
    except DamagedRecord as error:
        assert error.index == 1
        return
    try:
        expected = tf.train.Example.FromString(bytes(damaged)).features.feature
    except Exception:
        return  # stricter than we are, of text that is not UTF-8
    assert x == [b"text", expected["x"].bytes_list.value[0], b"text"]
    own = y[0][1][: y[1][1]].tolist()
    assert own == list(expected["y"].int64_list.value)
    np.testing.assert_array_equal(z[0][1][: z[1][1]], list(expected["z"].float_list.value))
