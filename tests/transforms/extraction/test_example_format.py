"""Keys and shapes that fit the model, looked at in the first records."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.conftest import CLASSES, SHAPE, Tiny, example, write_records
from tests.sample_examples import input_file
from transforms.core.errors import InputError
from transforms.examples.config import ExampleConfig
from transforms.examples.format import InputSpec
from transforms.extraction.example_format import (
    check_first_records,
    choose_batch_size,
    example_format,
    position_bytes,
)
from transforms.models.checkpoints import Checkpoints, ModelSpec, load


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Checkpoints:
    return load(ModelSpec((str(tiny.paths[0]),)))


def test_the_only_input_is_under_image_and_labels_are_the_losses(model: Checkpoints) -> None:
    form = example_format(ExampleConfig(id_key="id", keep_keys=("city",)), "given", model)
    assert form.inputs == (InputSpec("image", SHAPE, "float32"),)
    assert (form.label_key, form.label_width, form.labelled) == ("label", 1, True)
    assert (form.id_key, form.keep_keys, form.parse_fn) == ("id", ("city",), None)
    assert not example_format(ExampleConfig(), "predicted", model).labelled


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ExampleConfig(input_keys=("image", "other")), "`input_keys` names 2 keys, .* 1 inputs"),
        (ExampleConfig(keep_keys=("activations",)), "`keep_keys`: activations would overwrite"),
        (ExampleConfig(parse_fn="no_such_module:parse"), "`parse_fn=.*` cannot be imported"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    model: Checkpoints, config: ExampleConfig, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        example_format(config, "given", model)


def test_a_batch_fits_into_its_share_of_memory(model: Checkpoints) -> None:
    assert choose_batch_size([InputSpec("a", SHAPE, "float32")]) == 256
    assert choose_batch_size([InputSpec("a", (224, 224, 3), "float32")]) == 27
    assert choose_batch_size([InputSpec("a", (10**5, 10**4), "float32")]) == 1
    # Nobody knows how long strings are.
    assert choose_batch_size([InputSpec("a", (), "string")]) == 256
    # 512 positions of 6 checkpoints, 10 outputs and 768 units.
    assert choose_batch_size([InputSpec("a", (512,), "int32")], 4 * 512 * 6 * 778) == 7
    assert position_bytes(model) == 0


@pytest.fixture
def check(model: Checkpoints, tmp_path: pathlib.Path) -> Callable[..., None]:
    """Checks a file of these records, read as the configuration says."""

    def run(payloads: list[bytes], labels: str = "given", **config: Any) -> None:
        path = write_records(tmp_path / "examples", payloads)
        form = example_format(ExampleConfig(**config), labels, model)
        check_first_records([input_file(path)], form, model.loss, "train_examples", ("country",))

    return run


@pytest.mark.parametrize(
    ("setting", "value", "key"),
    [
        ("input_keys", ("pixels",), "pixels"),
        ("label_key", "class", "class"),
        ("id_key", "uuid", "uuid"),
        ("keep_keys", ("city",), "city"),
    ],
)
def test_a_key_that_is_missing_is_named_with_those_that_are_there(
    check: Callable[..., None], tiny: Tiny, setting: str, value: Any, key: str
) -> None:
    with pytest.raises(InputError) as caught:
        check(tiny.payloads()[:2], **{setting: value})
    message = str(caught.value)
    assert f"the first record of `train_examples` has no key {key!r}" in message
    assert "(its keys: id, image, label)" in message
    assert f"name the right one with `{setting}`" in message
    assert ("`train_labels=predicted`" in message) == (setting == "label_key")


def test_a_key_of_slices_is_named_by_their_setting(check: Callable[..., None], tiny: Tiny) -> None:
    with pytest.raises(InputError, match="name the right one with `slice_keys`"):
        check(tiny.payloads()[:2], keep_keys=("country",))


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        ({"label_key": "id"}, "is not numbers"),
        ({"input_keys": ("label",)}, "has 1 numbers"),
        ({"input_keys": ("id",)}, "neither PNG nor JPEG"),
    ],
)
def test_settings_that_reject_every_record_are_refused(
    check: Callable[..., None], tiny: Tiny, config: dict[str, Any], detail: str
) -> None:
    with pytest.raises(InputError, match="`train_examples`: none of the first 4 records") as caught:
        check(tiny.payloads()[:4], **config)
    assert detail in str(caught.value)


def test_a_label_that_is_none_of_the_losses_counts_as_unusable(
    check: Callable[..., None], tiny: Tiny
) -> None:
    wrong = example(image=tiny.images[0], label=CLASSES)
    with pytest.raises(InputError, match=r"outside 0\.\.2"):
        check([wrong, wrong])
    # Where they are predicted, labels are not read.
    check([wrong, wrong], labels="predicted")


def test_one_record_that_can_be_used_is_enough(check: Callable[..., None], tiny: Tiny) -> None:
    short = example(image=np.zeros(3), label=0, id="short")
    check([short, tiny.payloads()[0]])
    check([])
    with pytest.raises(InputError, match=r"none of the first 1 records .* not a tf\.train\.Exam"):
        check([b"\xffraw bytes"])
