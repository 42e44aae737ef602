"""One example: its id, its label and its kept keys, and every reason to reject it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import example, feature
from tests.sample_examples import PIXELS, SIX, parse, parsed, rejected
from transforms.core.errors import InputError
from transforms.examples import rejects
from transforms.examples.format import ExampleFormat, InputSpec


def test_several_inputs_come_in_the_models_order() -> None:
    form = ExampleFormat((InputSpec("b", (2,), "float32"), InputSpec("a", (1,), "int64")))
    first, second = parsed(example(a=[9], b=[0.5, 0.25], label=0), form).inputs
    assert first.tolist() == [0.5, 0.25] and second.tolist() == [9]


@pytest.mark.parametrize(
    ("given", "width", "expected"),
    [
        (3, 1, [3.0]),
        (0.25, 1, [0.25]),
        ([0, 1, 1], 3, [0.0, 1.0, 1.0]),
        ([0.5, 0.25, 0.25], 3, [0.5, 0.25, 0.25]),
    ],
)
def test_labels_are_one_number_or_one_for_each_output(
    given: Any, width: int, expected: list[float]
) -> None:
    label = parsed(
        example(image=SIX, label=given), ExampleFormat((PIXELS,), label_width=width)
    ).label
    assert label is not None and label.dtype == np.float64
    assert label.tolist() == expected


def test_labels_are_not_asked_for_where_they_are_predicted() -> None:
    assert parsed(example(image=SIX), ExampleFormat((PIXELS,), labelled=False)).label is None


@pytest.mark.parametrize(
    ("given", "expected"), [("cat-7", "cat-7"), ("größe".encode(), "größe"), (42, "42"), (-1, "-1")]
)
def test_ids_are_text_or_whole_numbers(given: Any, expected: str) -> None:
    assert (
        parsed(
            example(image=SIX, label=0, id=given), ExampleFormat((PIXELS,), id_key="id")
        ).example_id
        == expected
    )


def test_without_an_id_key_the_id_is_file_and_index() -> None:
    assert parsed(example(image=SIX, label=0)).example_id == "train/a#7"


def test_kept_keys_are_copied_as_they_are() -> None:
    serialized = example(image=SIX, label=0, city=["Ulm", "Bonn"], score=[0.5, 0.25])
    kept = parsed(serialized, ExampleFormat((PIXELS,), keep_keys=("city", "score"))).kept
    assert dict(kept) == {"city": feature(["Ulm", "Bonn"]), "score": feature([0.5, 0.25])}


@pytest.mark.parametrize(
    ("serialized", "reason", "detail"),
    [
        (b"\xff\xff not a proto", rejects.NOT_AN_EXAMPLE, "not a tf.train.Example"),
        (b"", rejects.MISSING_KEY, "keys: none"),
        (
            example(picture=SIX, label=0),
            rejects.MISSING_KEY,
            "no key 'image'; keys: label, picture",
        ),
        (example(image=SIX), rejects.MISSING_KEY, "no key 'label'; keys: image"),
        (
            example(image=SIX[:5], label=0),
            rejects.WRONG_SIZE,
            "has 5 numbers of shape (5,), the model's input has (2, 3)",
        ),
        (example(image=SIX, label=[0, 1]), rejects.WRONG_SIZE, "has 2 numbers, the loss takes 1"),
        (
            example(image=[*SIX[:5], np.nan], label=0),
            rejects.NON_FINITE_INPUT,
            "NaN or an infinity",
        ),
        (
            example(image=[*SIX[:5], -np.inf], label=0),
            rejects.NON_FINITE_INPUT,
            "NaN or an infinity",
        ),
        (
            example(image=b"GIF89a", label=0),
            rejects.BAD_IMAGE,
            "6 bytes that are neither PNG nor JPEG",
        ),
        (example(image=b"\x89PNG\r\n\x1a\n cut", label=0), rejects.BAD_IMAGE, "cannot be decoded"),
        (example(image=b"\xff\xd8\xff\xe0 cut", label=0), rejects.BAD_IMAGE, "cannot be decoded"),
        (example(image=["a", "b"], label=0), rejects.WRONG_TYPE, "a list of several byte strings"),
        (
            example(image=SIX, label="cat"),
            rejects.WRONG_TYPE,
            "the label under 'label' is not numbers",
        ),
    ],
)
def test_what_cannot_be_used_says_why(serialized: bytes, reason: str, detail: str) -> None:
    reject = rejected(serialized)
    assert reject.reason == reason
    assert detail in reject.detail
    assert "\n" not in reject.detail


def test_an_empty_feature_is_of_the_wrong_type() -> None:
    serialized = tf.train.Example(
        features=tf.train.Features(feature={"image": tf.train.Feature()})
    ).SerializeToString()
    reject = rejected(serialized)
    assert (reject.reason, reject.detail) == (rejects.WRONG_TYPE, "key 'image' is empty")


@pytest.mark.parametrize("bad", [b"", b"\xff\xfe", b"a\0b", 0.5, [1, 2]])
def test_a_bad_id_says_so(bad: Any) -> None:
    reject = rejected(example(image=SIX, label=0, id=bad), ExampleFormat((PIXELS,), id_key="id"))
    assert reject.reason == rejects.BAD_ID and "'id'" in reject.detail
    assert reject.example_id is None


def test_a_reject_carries_the_id_where_it_could_be_read() -> None:
    assert (
        rejected(
            example(image=[1.0], label=0, id="seven"), ExampleFormat((PIXELS,), id_key="id")
        ).example_id
        == "seven"
    )
    assert rejected(example(image=[1.0], label=0)).example_id == "train/a#7"
    assert rejected(b"\xff\xff").example_id is None


def test_a_missing_id_or_kept_key_is_a_missing_key() -> None:
    serialized = example(image=SIX, label=0)
    for form in (
        ExampleFormat((PIXELS,), id_key="uuid"),
        ExampleFormat((PIXELS,), keep_keys=("uuid",)),
    ):
        reject = rejected(serialized, form)
        assert reject.reason == rejects.MISSING_KEY and "no key 'uuid'" in reject.detail


def parse_good(serialized: bytes) -> Mapping[str, Any]:
    values = np.frombuffer(serialized, "<f4")
    return {
        "image": values[:6].reshape(2, 3),
        "label": values[6],
        "name": f"n{values[6]:g}",
        "rank": 3,
        "weights": [0.5, 1.0],
    }


def parse_raising(serialized: bytes) -> Mapping[str, Any]:
    raise KeyError("no such column")


def parse_list(serialized: bytes) -> Any:
    return [serialized]


def parse_text(serialized: bytes) -> Mapping[str, Any]:
    return {"image": ["a"] * 6, "label": 0}


RAW = np.array([*SIX, 2], "<f4").tobytes()


def with_parse_fn(name: str, **more: Any) -> ExampleFormat:
    return ExampleFormat((PIXELS,), parse_fn=f"{__name__}:{name}", **more)


def test_a_parsing_function_gives_what_the_keys_name() -> None:
    outcome = parsed(
        RAW, with_parse_fn("parse_good", id_key="name", keep_keys=("name", "rank", "weights"))
    )
    np.testing.assert_array_equal(outcome.inputs[0], np.reshape(SIX, (2, 3)).astype(np.float32))
    assert outcome.label is not None and outcome.label.tolist() == [2.0]
    assert outcome.example_id == "n2"
    assert dict(outcome.kept) == {
        "name": feature("n2"),
        "rank": feature(3),
        "weights": feature([0.5, 1.0]),
    }


def test_a_parsing_function_that_raises_costs_one_record() -> None:
    reject = rejected(RAW, with_parse_fn("parse_raising"))
    assert reject.reason == rejects.PARSE_FN_FAILED
    assert "parse_raising raised KeyError: 'no such column'" in reject.detail


def test_a_parsing_function_that_gives_no_mapping_costs_one_record() -> None:
    reject = rejected(RAW, with_parse_fn("parse_list"))
    assert reject.reason == rejects.PARSE_FN_FAILED
    assert "returned list, expected a mapping" in reject.detail


def test_a_parsing_function_that_gives_text_for_numbers_costs_one_record() -> None:
    assert rejected(RAW, with_parse_fn("parse_text")).reason == rejects.WRONG_TYPE


def channels_first(_: bytes) -> dict[str, Any]:
    return {"image": np.zeros((3, 4, 5)), "label": 0}


def test_an_array_of_as_many_numbers_in_another_shape_is_rejected() -> None:
    form = ExampleFormat(
        (InputSpec("image", (4, 5, 3), "float32"),), parse_fn=f"{__name__}:channels_first"
    )
    assert rejected(b"", form).reason == rejects.WRONG_SIZE


def test_a_parsing_function_that_is_gone_ends_the_run_instead_of_rejecting_every_record() -> None:
    with pytest.raises(InputError, match="cannot be imported"):
        parse(b"", ExampleFormat((PIXELS,), parse_fn="no_such_module:parse"))
