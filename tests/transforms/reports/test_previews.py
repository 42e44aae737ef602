"""The inputs that are pictures, and how a feature set's examples are read for them."""

from __future__ import annotations

import pytest

from transforms.examples.format import InputSpec
from transforms.reports.previews import is_picture, preview_format, why_no_pictures
from transforms.storage.manifests import FeatureManifest


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((8, 8), True),
        ((8, 8, 3), True),
        ((8, 8, 2), False),
        ((64,), False),
        ((1, 8), False),
        ((4, 8, 8, 3), False),
    ],
)
def test_which_inputs_are_pictures(shape, told):
    assert is_picture(shape) is told


def manifest(shapes, **settings) -> FeatureManifest:
    inputs = tuple(
        {"key": f"key-{i}", "shape": list(shape), "dtype": "uint8"}
        for i, shape in enumerate(shapes)
    )
    return FeatureManifest(
        "features",
        "",
        settings,
        (),
        {},
        "",
        "class",
        3,
        5,
        ("a",),
        (1.0,),
        (),
        {},
        inputs=inputs,
    )


def test_the_first_picture_and_the_kept_keys_are_read():
    form = preview_format(
        manifest([(7,), (8, 8, 3), (9, 9)], keep_keys=["note"], parse_fn="module:parse")
    )
    assert form.inputs == (InputSpec("key-1", (8, 8, 3), "uint8"),)
    assert form.keep_keys == ("note",) and form.parse_fn == "module:parse" and not form.labelled


def test_kept_keys_are_read_without_a_picture():
    form = preview_format(manifest([(7,)], keep_keys=["note"]))
    assert form.inputs == () and form.keep_keys == ("note",)
    assert preview_format(manifest([(7,)])) is None


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [([], "earlier version"), ([(7,), (2, 2, 2)], "(7,), (2, 2, 2)"), ([(7,), (2, 2)], None)],
)
def test_a_report_without_pictures_has_a_reason(shapes, reason):
    found = why_no_pictures(manifest(shapes))
    assert found is None if reason is None else reason in found
