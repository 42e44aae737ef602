"""The feature record: what is stored is what is read, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.conftest import feature
from transforms.core.features import NO_LABEL, Features, concatenate_labels
from transforms.core.ids import id_array
from transforms.core.origins import Origin
from transforms.examples import rejects
from transforms.examples.rejects import Reject
from transforms.storage.records import feature_record
from transforms.storage.records.feature_record import decode, encode, relocate

ARRAYS = (
    "probabilities",
    "label_probabilities",
    "loss_grads",
    "activations",
    "loss_grad_norms",
    "activation_norms",
)


def make(
    n: int, t: int = 2, c: int = 3, d: int = 5, labels: np.ndarray | None = None, seed: int = 0
) -> Features:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, (n, 1)) if labels is None else labels
    return Features.of(
        [f"bild-ä-{i}".encode() for i in range(n)],
        labels,
        labels[::-1].copy(),
        rng.random(n),
        rng.random((n, t)),
        rng.normal(size=(n, t, c)) * 10.0 ** rng.integers(-30, 10, (n, 1, 1)),
        rng.normal(size=(n, t, d)),
    )


def origins(n: int) -> list[Origin]:
    return [Origin(f"gs://b/ü-{i}", i * 7, bytes([i] * 16)) for i in range(n)]


def there_and_back(features: Features) -> Features:
    _, t, c = features.loss_grads.shape
    d = features.activations.shape[2]
    return decode(
        encode(features, origins(len(features))),
        t,
        c,
        d,
        np.issubdtype(features.labels.dtype, np.integer),
    )


def check_equal(found: Features, expected: Features) -> None:
    assert found.example_ids.tolist() == expected.example_ids.tolist()
    for name in ("labels", "predictions"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    for name in ARRAYS:
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name
        assert getattr(found, name).shape == getattr(expected, name).shape, name
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


@pytest.mark.parametrize(
    ("n", "t", "c", "d"), [(1, 1, 1, 1), (4, 2, 3, 5), (3, 6, 10, 129), (2, 1, 1, 7)]
)
def test_records_survive_a_round_trip_bit_for_bit(n: int, t: int, c: int, d: int) -> None:
    features = make(n, t, c, d)
    check_equal(there_and_back(features), features)


def test_a_record_that_has_moved_is_the_record_of_its_new_place() -> None:
    features, kept = (
        make(3),
        {"label_of_old": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x", b""]))},
    )
    was, now = (
        [Origin(source, step * i, bytes(16), kept) for i in range(3)]
        for source, step in (("a", 1), ("gs://b/ü", 1000))
    )
    moved = [
        relocate(record, "gs://b/ü", 1000 * i) for i, record in enumerate(encode(features, was))
    ]
    assert moved == encode(features, now)


def nearest(array: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds float32 to a shorter dtype, to even between two; for bfloat16 on the bits."""
    if dtype == "float16":
        return array.astype(np.float16).astype(np.float32)
    bits = array.view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.where(np.isnan(array), array, kept.astype(np.uint32).view(np.float32))


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 2, 3), elements=st.floats(width=32)),
    st.sampled_from(["bfloat16", "float16"]),
)
def test_shorter_dtypes_round_once_to_the_nearest(loss_grads: np.ndarray, dtype: str) -> None:
    like = make(2)
    with np.errstate(all="ignore"):
        features = Features.of(
            [b"a", b"b"],
            like.labels,
            like.predictions,
            like.probabilities,
            like.label_probabilities,
            loss_grads,
            like.activations,
            dtype,
        )
        np.testing.assert_array_equal(features.loss_grads, nearest(loss_grads, dtype))
        np.testing.assert_array_equal(
            features.activations, nearest(like.activations.astype(np.float32), dtype)
        )
        # The norms bound scores of what is stored, so they are of that.
        expected = np.linalg.norm(features.loss_grads.astype(np.float64), axis=-1)
    np.testing.assert_allclose(features.loss_grad_norms, expected, rtol=1e-12)
    serialized = encode(features, origins(2), dtype)
    check_equal(decode(serialized, 2, 3, 5, True, dtype), features)
    stored = tf.train.Example.FromString(serialized[0]).features.feature
    assert len(stored["loss_grads"].bytes_list.value[0]) == 2 * 2 * 3


@settings(max_examples=25, deadline=None)
@given(
    loss_grads=hnp.arrays(np.float32, (2, 2, 3), elements=st.floats(width=32)),
    probabilities=hnp.arrays(np.float32, 2, elements=st.floats(width=32)),
)
def test_any_float_survives_a_round_trip(loss_grads: np.ndarray, probabilities: np.ndarray) -> None:
    features = make(2)
    with np.errstate(all="ignore"):
        features = Features.of(
            [b"a", b"b"],
            features.labels,
            features.predictions,
            probabilities,
            features.label_probabilities,
            loss_grads,
            features.activations,
        )
    found = there_and_back(features)
    assert found.loss_grads.tobytes() == features.loss_grads.tobytes()
    np.testing.assert_array_equal(found.probabilities, features.probabilities)


def by_the_library(features: Features, origins: list[Origin]) -> list[bytes]:
    """The records as Protocol Buffers' own library writes them."""

    def numbers(row: np.ndarray) -> tf.train.Feature:
        if row.dtype.kind == "i":
            return tf.train.Feature(
                int64_list=tf.train.Int64List(value=[v for v in row.tolist() if v != NO_LABEL])
            )
        return tf.train.Feature(float_list=tf.train.FloatList(value=row.tolist()))

    written = []
    for i, origin in enumerate(origins):
        fields = {
            "example_id": feature(bytes(features.example_ids[i])),
            "source": feature(origin.source),
            "offset": feature(origin.offset),
            "content_digest": feature(origin.content_digest),
            "label": numbers(features.labels[i]),
            "prediction": numbers(features.predictions[i]),
            "probability": numbers(features.probabilities[i : i + 1]),
            "label_probability": numbers(features.label_probabilities[i]),
            **{
                name: feature(getattr(features, name)[i].tobytes())
                for name in ("loss_grads", "activations", "loss_grad_norms", "activation_norms")
            },
            **origin.kept,
        }
        written.append(
            tf.train.Example(features=tf.train.Features(feature=fields)).SerializeToString(
                deterministic=True
            )
        )
    return written


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_records_are_written_as_the_library_writes_them(data: st.DataObject) -> None:
    n, t, c, d, width = (
        data.draw(st.integers(low, high))
        for low, high in ((1, 4), (1, 3), (1, 90), (1, 300), (0, 40))
    )
    whole = data.draw(st.booleans())
    elements = (
        st.one_of(st.just(NO_LABEL), st.integers(0, 2**63 - 1))
        if whole
        else st.floats(width=32, allow_nan=False)
    )
    labels = data.draw(hnp.arrays(np.int64 if whole else np.float64, (n, width), elements=elements))
    features = make(n, t, c, d, labels=labels)
    keys = data.draw(
        st.lists(
            st.text(max_size=200).filter(lambda key: key not in feature_record.FIELDS),
            unique=True,
            max_size=3,
        )
    )
    kept = st.one_of(
        st.binary(max_size=300),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
        st.just([0.5, -1.0]),
    )
    places = [
        Origin(
            data.draw(st.text(max_size=150)),
            data.draw(st.integers(0, 2**40)),
            data.draw(st.binary(min_size=16, max_size=16)),
            {key: feature(data.draw(kept)) for key in keys},
        )
        for _ in range(n)
    ]
    written, expected = encode(features, places), by_the_library(features, places)
    # But for the order of keys, in which the library puts `label` behind `label_probability`.
    assert [tf.train.Example.FromString(record) for record in written] == [
        tf.train.Example.FromString(record) for record in expected
    ]
    assert [len(record) for record in written] == [len(record) for record in expected]
    assert all(
        record.index(b"\x05label\x12") < record.index(b"\x11label_probability\x12")
        for record in written
    )


def test_lists_of_active_outputs_keep_their_padding() -> None:
    labels = np.array([[0, 2, 4], [1, NO_LABEL, NO_LABEL], [NO_LABEL, NO_LABEL, NO_LABEL]])
    features = make(3, c=5, labels=labels)
    check_equal(there_and_back(features), features)
    stored = tf.train.Example.FromString(encode(features, origins(3))[1])
    assert list(stored.features.feature["label"].int64_list.value) == [1]


def test_no_active_output_anywhere_is_padding_of_width_one() -> None:
    found = there_and_back(make(2, labels=np.full((2, 3), NO_LABEL)))
    assert found.labels.tolist() == [[NO_LABEL], [NO_LABEL]] and found.labels.dtype == np.int64


def test_regression_values_stay_what_they_are_even_minus_one() -> None:
    labels = np.array([[-1.0, 0.5], [2.5, -1.0]])
    features = make(2, labels=labels)
    found = there_and_back(features)
    check_equal(found, features)
    assert found.labels.dtype == np.float64


def test_an_empty_batch_keeps_its_shapes() -> None:
    assert encode(make(0), []) == []
    for integer in (True, False):
        found = decode([], 2, 3, 5, integer)
        assert len(found) == 0
        assert found.loss_grads.shape == (0, 2, 3) and found.activations.shape == (0, 2, 5)
        assert found.label_probabilities.shape == (0, 2) and found.loss_grad_norms.shape == (0, 2)
        assert found.labels.shape[0] == 0 and found.labels.dtype == (
            np.int64 if integer else np.float64
        )


def test_the_stored_fields_are_those_of_the_table() -> None:
    features = make(1)
    origin = Origin("gs://b/f", 3, b"d" * 16, {"city": feature("Ulm")})
    (serialized,) = encode(features, [origin])
    stored = tf.train.Example.FromString(serialized).features.feature
    assert set(stored) == {*feature_record.FIELDS, "city"}
    assert stored["source"].bytes_list.value[0] == b"gs://b/f"
    assert stored["offset"].int64_list.value[0] == 3
    assert stored["content_digest"].bytes_list.value[0] == b"d" * 16
    assert stored["city"] == feature("Ulm")
    assert (
        np.frombuffer(stored["loss_grads"].bytes_list.value[0], "<f4").tolist()
        == features.loss_grads[0].ravel().tolist()
    )
    assert (
        np.frombuffer(stored["activation_norms"].bytes_list.value[0], "<f8").tolist()
        == features.activation_norms[0].tolist()
    )


def test_equal_records_give_equal_bytes_however_their_keys_were_added() -> None:
    features = make(1)
    kept = {f"k{i}": feature(i) for i in range(20)}
    one, other = (Origin("f", 0, b"", keys) for keys in (kept, dict(reversed(kept.items()))))
    assert encode(features, [one]) == encode(features, [other])


def test_a_record_of_another_shape_is_refused() -> None:
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        decode(encode(make(2), origins(2)), 3, 3, 5, True)


def test_rows_are_taken_and_put_together_again() -> None:
    features = make(5)
    parts = [
        features.take(slice(0, 2)),
        features.take(np.array([2])),
        features.take(np.arange(5) > 2),
    ]
    assert [len(part) for part in parts] == [2, 1, 2]
    check_equal(Features.concatenate(parts), features)


def test_labels_of_different_width_are_padded_when_put_together() -> None:
    joined = concatenate_labels([np.array([[1]]), np.array([[2, 3]]), np.empty((0, 4), np.int64)])
    assert joined.tolist() == [[1, -1, -1, -1], [2, 3, -1, -1]]


def test_ids_sort_as_bytes() -> None:
    ids = id_array([b"b", "ä".encode(), b"ab", b"a"])
    assert np.sort(ids).tolist() == [b"a", b"ab", b"b", "ä".encode()]
    assert len(id_array([])) == 0


# What was set aside


def test_rejects_survive_a_round_trip_and_are_counted_by_frequency() -> None:
    aside = [
        Reject("a", 0, None, rejects.BAD_CHECKSUM, "x"),
        Reject("a", 2, "größe\n", rejects.BAD_LABEL, 'with "quotes"\nand lines'),
        Reject("b", 1, "c", rejects.BAD_LABEL, ""),
    ]
    data = rejects.to_jsonl(aside)
    assert data.count(b"\n") == 3
    assert rejects.from_jsonl(data) == aside
    assert list(rejects.count_reasons(aside).items()) == [
        (rejects.BAD_LABEL, 2),
        (rejects.BAD_CHECKSUM, 1),
    ]


def test_origins_and_ids_are_read_alone_and_packed():
    # Digests may end in zeros.
    known = [
        Origin(f"gs://b/ü-{i % 2}", i * 7, bytes(15 - i) + bytes([1]) + bytes(i)) for i in range(6)
    ]
    serialized = encode(make(6), known)
    assert feature_record.origins(serialized) == known
    assert feature_record.example_ids(serialized) == [f"bild-ä-{i}".encode() for i in range(6)]
    packed = feature_record.packed_origins(serialized)
    assert [
        Origin(packed.sources[source], offset, digest.tobytes())
        for source, offset, digest in zip(
            packed.source.tolist(), packed.offsets.tolist(), packed.digests, strict=True
        )
    ] == known
    assert len(packed.sources) == 2


def test_kept_keys_are_text():
    kept = {
        "country": feature("Perú"),
        "tags": feature(["a", "b"]),
        "hour": feature(12345678),
        "ratio": feature(0.25),
        "none": feature([]),
    }
    serialized = encode(make(2), [Origin("f", i, bytes(16), kept) for i in range(2)])
    expected = {"country": "Perú", "tags": "a, b", "hour": "12345678", "ratio": "0.25", "none": ""}
    assert feature_record.kept_texts(serialized, list(kept)) == {
        key: [text] * 2 for key, text in expected.items()
    }
    assert feature_record.kept_texts(serialized, ()) == {}
