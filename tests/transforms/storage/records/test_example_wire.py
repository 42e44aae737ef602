"""The wire format: single examples are read and written as Protocol Buffers' own library does."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import feature
from transforms.storage.records.example_wire import (
    BYTES_LIST,
    FLOAT_LIST,
    INT64_LIST,
    Feature,
    WireError,
    encode_vectors,
    entry_keys,
    read_features,
    varint,
    varint_rows,
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=20),
        st.one_of(
            st.lists(st.binary(max_size=5), max_size=3),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
            st.lists(st.floats(width=32, allow_nan=False), max_size=3),
        ),
        max_size=4,
    )
)
def test_single_records_are_read_and_written_as_by_the_library(values) -> None:
    keys = {key: feature(value) for key, value in values.items()}
    record = tf.train.Example(features=tf.train.Features(feature=keys)).SerializeToString()
    found = read_features(record)
    assert {key.decode() for key in found} == set(values)
    for key, one in found.items():
        assert list(one.values) == list(values[key.decode()])
        assert one.serialize() == keys[key.decode()].SerializeToString(deterministic=True)


def test_lists_of_one_kind_are_joined_and_the_last_kind_counts() -> None:
    numbers, more = Feature(INT64_LIST, (1, -2)), Feature(INT64_LIST, (300,))
    joined = Feature.parse(numbers.serialize() + more.serialize())
    assert joined == Feature(INT64_LIST, (1, -2, 300))
    text = Feature(BYTES_LIST, (b"a", b""))
    assert Feature.parse(numbers.serialize() + text.serialize()) == text
    assert Feature.parse(b"") == Feature() and Feature().serialize() == b""
    assert Feature.parse(Feature(FLOAT_LIST).serialize()) == Feature(FLOAT_LIST)


def test_keys_come_in_the_order_in_which_they_are_written() -> None:
    vectors = np.ones((1, 3), np.float32)
    (record,) = encode_vectors(np.array([b"id"]), np.array([[4]]), vectors)
    assert entry_keys(record) == [b"example_id", b"label", b"vector"]
    assert read_features(record) == {
        b"example_id": Feature(BYTES_LIST, (b"id",)),
        b"label": Feature(INT64_LIST, (4,)),
        b"vector": Feature(FLOAT_LIST, (1.0, 1.0, 1.0)),
    }
    assert tf.train.Example.FromString(record).features.feature["label"].int64_list.value == [4]


@pytest.mark.parametrize(
    "broken",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0d\x00\x00",
        b"\x08",
        b"\x08" + b"\xff" * 10,
        b"\x0b",
        b"\x00\x00",
    ],
)
def test_what_is_no_message_is_refused(broken: bytes) -> None:
    with pytest.raises(WireError):
        read_features(broken)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_varints_are_written_alike_one_by_one_and_together(values: list[int]) -> None:
    rows = varint_rows(np.array(values, np.int64))
    assert [bytes(row) for row in rows] == [varint(value) for value in values]
    record = tf.train.Int64List(value=values).SerializeToString()
    assert record.endswith(b"".join(map(varint, values)))
