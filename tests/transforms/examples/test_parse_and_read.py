"""Parsing of examples: every kind of input, every reason to set one aside, and that the fast path
gives what the slow one gives.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import damage, example, feature, write_records
from transforms.core.errors import InputError
from transforms.examples import parse_record, rejects
from transforms.examples.batch import ExampleBatch, ParsedExample, digest
from transforms.examples.format import ExampleFormat, InputFile, InputSpec, resolve_function
from transforms.examples.parse_batch import BatchParser
from transforms.examples.parse_record import parse_example
from transforms.examples.read import first_records, read_examples
from transforms.examples.rejects import Reject

PIXELS = InputSpec("image", (2, 3), "float32")
FORM = ExampleFormat((PIXELS,))
SIX = [0.5, 1.5, -2.0, 3.0, 4.0, 5.0]


def parse(serialized: bytes, form: ExampleFormat = FORM) -> ParsedExample | Reject:
    return parse_example(serialized, "train/a", 7, "/data/train/a", form)


def parsed(serialized: bytes, form: ExampleFormat = FORM) -> ParsedExample:
    outcome = parse(serialized, form)
    assert isinstance(outcome, ParsedExample), outcome
    return outcome


def rejected(serialized: bytes, form: ExampleFormat = FORM) -> Reject:
    outcome = parse(serialized, form)
    assert isinstance(outcome, Reject), outcome
    assert (outcome.source, outcome.offset) == ("/data/train/a", 7)
    return outcome


# Inputs


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32"])
@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, 2, 3, 4, 5]])
def test_number_lists_take_the_models_shape_and_dtype(values: list[Any], dtype: str) -> None:
    form = ExampleFormat((InputSpec("image", (2, 3), dtype),))
    (array,) = parsed(example(image=values, label=1), form).inputs
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))


def test_several_inputs_come_in_the_models_order() -> None:
    form = ExampleFormat((InputSpec("b", (2,), "float32"), InputSpec("a", (1,), "int64")))
    first, second = parsed(example(a=[9], b=[0.5, 0.25], label=0), form).inputs
    assert first.tolist() == [0.5, 0.25] and second.tolist() == [9]


def pixels(channels: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    # Smooth, so that JPEG changes little.
    base = np.linspace(40, 200, 8 * 12).reshape(8, 12, 1) + rng.uniform(0, 4, channels) * 10
    return base.astype(np.uint8)


def encoded(image: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
        out, kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    return out.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_decoded_exactly(channels: int, dtype: str) -> None:
    image = pixels(channels)
    form = ExampleFormat((InputSpec("image", image.shape, dtype),))
    (array,) = parsed(example(image=encoded(image, "PNG"), label=1), form).inputs
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, image)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_decoded_as_tensorflow_decodes_it(channels: int) -> None:
    image = pixels(channels)
    data = encoded(image, "JPEG")
    form = ExampleFormat((InputSpec("image", image.shape, "uint8"),))
    (array,) = parsed(example(image=data, label=1), form).inputs
    np.testing.assert_array_equal(array, tf.io.decode_jpeg(data, channels).numpy())
    assert np.abs(array.astype(int) - image).max() < 16


def test_a_grey_image_feeds_an_rgb_model_and_an_rgb_image_a_grey_one() -> None:
    grey, rgb = pixels(1), np.repeat(pixels(1), 3, axis=-1)
    (array,) = parsed(
        example(image=encoded(grey, "PNG"), label=1),
        ExampleFormat((InputSpec("image", rgb.shape, "uint8"),)),
    ).inputs
    np.testing.assert_array_equal(array, rgb)
    (array,) = parsed(
        example(image=encoded(rgb, "PNG"), label=1),
        ExampleFormat((InputSpec("image", grey.shape, "uint8"),)),
    ).inputs
    assert np.abs(array.astype(int) - grey).max() <= 1  # the decoder weighs the channels


@pytest.mark.parametrize("shape", [(8, 12), (96,)])
def test_a_grey_image_feeds_a_model_without_channels(shape: tuple[int, ...]) -> None:
    image = pixels(1)
    (array,) = parsed(
        example(image=encoded(image, "PNG"), label=1),
        ExampleFormat((InputSpec("image", shape, "float32"),)),
    ).inputs
    np.testing.assert_array_equal(array, image.reshape(shape))


def test_an_image_of_another_shape_with_as_many_pixels_is_not_scrambled() -> None:
    form = ExampleFormat((InputSpec("image", (12, 8, 1), "uint8"),))
    reject = rejected(example(image=encoded(pixels(1), "PNG"), label=1), form)
    assert reject.reason == rejects.WRONG_SIZE
    assert "(8, 12, 1)" in reject.detail and "(12, 8, 1)" in reject.detail


# Labels, ids and kept keys


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


def test_a_kept_key_that_would_overwrite_a_field_is_refused() -> None:
    with pytest.raises(InputError, match="offset would overwrite"):
        ExampleFormat((PIXELS,), keep_keys=("city", "offset"))


# Reasons


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


# A user's own parsing


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


@pytest.mark.parametrize(
    "name", ["no_such_module:f", "math:no_such_function", "math", "math:pi", ":f"]
)
def test_a_function_that_cannot_be_had_is_told_by_its_flag(name: str) -> None:
    with pytest.raises(InputError, match=f"`parse_fn='{name}'`"):
        resolve_function(name, "parse_fn")


# Batches


@pytest.mark.parametrize("value", [256, -1, 0.5])
def test_a_number_that_the_input_cannot_hold_is_rejected_and_not_wrapped(value: float) -> None:
    form = ExampleFormat((InputSpec("image", (2,), "uint8"),))
    good, bad = (
        example(image=np.array([7, 255]), label=0),
        example(image=np.array([0, value]), label=0),
    )
    assert rejected(bad, form).reason == rejects.WRONG_TYPE
    assert "cannot hold" in rejected(bad, form).detail
    batch = batch_of(form, [good, good, bad])
    assert [reject.reason for reject in batch.rejects] == [rejects.WRONG_TYPE]
    assert [array.tolist() for array in batch.inputs] == [[[7, 255], [7, 255]]]


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


FILE = InputFile(0, "/data/train/a", "train/a", 0)


def batch_of(
    form: ExampleFormat, serialized: list[bytes], parser: BatchParser | None = None
) -> ExampleBatch:
    return (parser or BatchParser(form, FILE)).parse(serialized, range(10, 10 + len(serialized)))


def ids(batch: ExampleBatch) -> list[str]:
    return [example_id.decode() for example_id in batch.example_ids.tolist()]


def check_against_single(batch: ExampleBatch, form: ExampleFormat, serialized: list[bytes]) -> None:
    """A batch holds exactly what parsing its records one by one gives, bit for bit and in order."""
    outcomes = [
        parse_example(record, FILE.name, 10 + i, FILE.path, form)
        for i, record in enumerate(serialized)
    ]
    good = [
        (i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, ParsedExample)
    ]
    assert ids(batch) == [outcome.example_id for _, outcome in good]
    assert batch.offsets.tolist() == [10 + i for i, _ in good]
    assert [row.tobytes() for row in batch.digests] == [digest(serialized[i]) for i, _ in good]
    assert [*batch.kept] == [*form.keep_keys]
    for key, kept in batch.kept.items():
        assert list(map(tf.train.Feature.FromString, kept)) == [
            outcome.kept[key] for _, outcome in good
        ]
    assert batch.rejects == [outcome for outcome in outcomes if isinstance(outcome, Reject)]
    for j, spec in enumerate(form.inputs):
        assert batch.inputs[j].dtype == spec.dtype
        assert batch.inputs[j].shape == (len(good), *spec.shape)
        assert batch.inputs[j].tobytes() == b"".join(
            outcome.inputs[j].tobytes() for _, outcome in good
        )
    if form.labelled:
        assert batch.labels is not None and batch.labels.dtype == np.float64
        assert batch.labels.shape == (len(good), form.label_width)
        assert batch.labels.tolist() == [
            outcome.label.tolist() for _, outcome in good if outcome.label is not None
        ]
    else:
        assert batch.labels is None


def floats(n: int, **more: Any) -> list[bytes]:
    rng = np.random.default_rng(2)
    return [
        example(
            image=rng.normal(size=6).astype(np.float32),
            label=i % 3,
            **{k: v(i) for k, v in more.items()},
        )
        for i in range(n)
    ]


WHOLE = ExampleFormat((InputSpec("image", (6,), "uint8"),), label_width=2)


@pytest.mark.parametrize(
    ("form", "serialized"),
    [
        (FORM, floats(9)),
        (ExampleFormat((PIXELS,), id_key="id"), floats(9, id=lambda i: f"ex-{i}")),
        (ExampleFormat((PIXELS,), id_key="id"), floats(9, id=lambda i: i - 4)),
        (ExampleFormat((PIXELS,), labelled=False), floats(9)),
        (ExampleFormat((PIXELS, InputSpec("rank", (), "int32"))), floats(9, rank=lambda i: i)),
        (
            ExampleFormat((InputSpec("image", (6,), "uint8"),), label_width=2),
            [example(image=range(i, i + 6), label=[0.5, i]) for i in range(5)],
        ),
    ],
    ids=["file ids", "text ids", "number ids", "no labels", "two inputs", "ints and vector labels"],
)
def test_a_clean_batch_is_parsed_at_once_and_equals_single_parsing(
    monkeypatch: pytest.MonkeyPatch, form: ExampleFormat, serialized: list[bytes]
) -> None:
    parser = BatchParser(form, FILE)
    with monkeypatch.context() as patch:
        patch.setattr(parse_record, "parse_example", lambda *_: pytest.fail("parsed singly"))
        batch = batch_of(form, serialized, parser)
    check_against_single(batch, form, serialized)


BAD = {
    "not an example": b"\xff\xff",
    "missing key": example(label=1, id="m"),
    "size": example(image=[1.0], label=1, id="s"),
    "type": example(
        image=[1, 2, 3, 4, 5, 6], label=1, id="t"
    ),  # whole numbers: usable, but not by the fast path
    "nan": example(image=[np.nan] * 6, label=1, id="n"),
    "image": example(image=b"GIF", label=1, id="i"),
    "label": example(image=SIX, label=[1, 2], id="l"),
    "id": example(image=SIX, label=1, id=b"\xff"),
    "empty id": example(image=SIX, label=1, id=""),
    "NUL in an id": example(image=SIX, label=1, id="a\0b"),
}


@pytest.mark.parametrize("position", [0, 4, 8])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_changes_no_bit_of_its_neighbours(kind: str, position: int) -> None:
    form = ExampleFormat((PIXELS,), id_key="id")
    clean = floats(8, id=lambda i: f"ex-{i}")
    mixed = [*clean[:position], BAD[kind], *clean[position:]]
    parser = BatchParser(form, FILE)
    batch = batch_of(form, mixed, parser)
    check_against_single(batch, form, mixed)
    whole = batch_of(form, clean)
    rows = [i for i, example_id in enumerate(ids(batch)) if example_id.startswith("ex-")]
    assert batch.inputs[0][rows].tobytes() == whole.inputs[0].tobytes()
    assert [ids(batch)[i] for i in rows] == ids(whole)
    # The parser is none the worse for it.
    check_against_single(batch_of(form, clean, parser), form, clean)


def test_ids_that_only_together_are_utf_8_are_rejected() -> None:
    form = ExampleFormat((PIXELS,), id_key="id")
    halves = [example(image=SIX, label=1, id=half) for half in (b"\xc3", b"\xa9")]
    check_against_single(batch_of(form, halves), form, halves)
    assert ids(batch_of(form, halves)) == []


def test_records_of_another_layout_are_parsed_at_once_again_after_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser = BatchParser(FORM, FILE)
    batch_of(FORM, floats(3), parser)
    whole_numbers = [example(image=range(i, i + 6), label=1) for i in range(3)]
    check_against_single(batch_of(FORM, whole_numbers, parser), FORM, whole_numbers)
    with monkeypatch.context() as patch:
        patch.setattr(parse_record, "parse_example", lambda *_: pytest.fail("parsed singly"))
        batch = batch_of(FORM, whole_numbers, parser)
    check_against_single(batch, FORM, whole_numbers)


def test_a_batch_without_a_good_record_is_empty_and_keeps_its_shapes() -> None:
    batch = batch_of(FORM, [BAD["size"], BAD["nan"]])
    assert batch.inputs[0].shape == (0, 2, 3) and batch.inputs[0].dtype == np.float32
    assert batch.labels is not None and batch.labels.shape == (0, 1)
    assert [reject.offset for reject in batch.rejects] == [10, 11]


def test_images_and_kept_keys_go_through_batches() -> None:
    image = pixels(1)
    form = ExampleFormat((InputSpec("image", image.shape, "uint8"),), keep_keys=("city",))
    serialized = [example(image=encoded(image + i, "PNG"), label=i, city=f"c{i}") for i in range(5)]
    check_against_single(batch_of(form, serialized), form, serialized)


# Files


def input_file(path: pathlib.Path, name: str = "train/a") -> InputFile:
    return InputFile(0, str(path), name, path.stat().st_size)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_a_file_is_read_in_order_in_batches(
    tmp_path: pathlib.Path, batch_size: int, compression: str
) -> None:
    path = write_records(tmp_path / "a", floats(7), compression)
    batches = list(read_examples(input_file(path), FORM, batch_size, False))
    assert [len(batch.offsets) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert [offset for batch in batches for offset in batch.offsets] == list(range(7))
    assert [example_id for batch in batches for example_id in ids(batch)] == [
        f"train/a#{i}" for i in range(7)
    ]
    assert sum(batch.bytes_read for batch in batches) == path.stat().st_size


def test_a_damaged_payload_is_a_reject_and_the_others_keep_their_indices(
    tmp_path: pathlib.Path,
) -> None:
    records = floats(7)
    path = write_records(tmp_path / "a", records)
    damage(path, sum(len(record) + 16 for record in records[:3]) + 20)
    batches = list(read_examples(input_file(path), FORM, 2, False))
    assert [offset for batch in batches for offset in batch.offsets] == [0, 1, 2, 4, 5, 6]
    (reject,) = [reject for batch in batches for reject in batch.rejects]
    assert (reject.source, reject.offset, reject.reason) == (str(path), 3, rejects.BAD_CHECKSUM)


def test_a_file_without_records_gives_one_empty_last_batch(tmp_path: pathlib.Path) -> None:
    (batch,) = read_examples(input_file(write_records(tmp_path / "a", [])), FORM, 4, False)
    assert batch.last and ids(batch) == [] and batch.rejects == []


def truncated(tmp_path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A file of five records whose last one is cut, and where that one starts."""
    records = floats(5)
    path = write_records(tmp_path / "a", records)
    path.write_bytes(path.read_bytes()[:-9])
    return path, sum(len(record) + 16 for record in records[:4])


def test_a_truncated_file_ends_the_run_and_says_where(tmp_path: pathlib.Path) -> None:
    path, start = truncated(tmp_path)
    with pytest.raises(InputError) as caught:
        list(read_examples(input_file(path), FORM, 2, False))
    message = str(caught.value)
    assert (
        str(path) in message
        and f"record 4 at byte {start}" in message
        and "`allow_truncated_files`" in message
    )


def test_a_truncated_file_is_used_as_far_as_it_goes_where_allowed(tmp_path: pathlib.Path) -> None:
    path, start = truncated(tmp_path)
    batches = list(read_examples(input_file(path), FORM, 2, True))
    assert [offset for batch in batches for offset in batch.offsets] == [0, 1, 2, 3]
    (reject,) = batches[-1].rejects
    assert (reject.offset, reject.reason) == (4, rejects.UNREADABLE_TAIL)
    assert f"from byte {start} on" in reject.detail


def test_the_first_records_are_the_first_readable_ones(tmp_path: pathlib.Path) -> None:
    records = floats(3)
    path = write_records(tmp_path / "a", records)
    damage(path, 20)
    assert first_records(input_file(path), 1) == records[1:2]
    assert first_records(input_file(path), 9) == records[1:]
    assert first_records(input_file(write_records(tmp_path / "b", [])), 5) == []
    (tmp_path / "c").write_bytes(b"not a TFRecord file at all")
    assert first_records(input_file(tmp_path / "c"), 5) == []


def test_an_id_that_is_too_long_is_rejected_on_both_paths() -> None:
    form = ExampleFormat((PIXELS,), id_key="id")
    fits, too_long = (example(image=SIX, label=1, id="é" * n) for n in (256, 257))
    assert rejected(too_long, form).reason == rejects.BAD_ID
    batch = batch_of(form, [fits, too_long])
    assert (ids(batch), [reject.reason for reject in batch.rejects]) == (
        ["é" * 256],
        [rejects.BAD_ID],
    )
