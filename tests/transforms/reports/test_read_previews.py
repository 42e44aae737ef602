"""Previews read again from the files of examples, and the reasons why there are none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import example, write_records
from transforms.core.origins import Origin
from transforms.examples.batch import digest
from transforms.examples.format import ExampleFormat, InputSpec
from transforms.reports.read_previews import read_previews

FORM = ExampleFormat((InputSpec("image", (4, 4), "float32"),), labelled=False, keep_keys=("note",))


def origins(path, payloads) -> list[Origin]:
    write_records(path, payloads)
    return [Origin(str(path), i, digest(payload)) for i, payload in enumerate(payloads)]


def payload(i: int, **more) -> bytes:
    return example(image=np.full((4, 4), i / 10, np.float32), note=f"note {i}", **more)


def test_pictures_and_texts_come_from_the_records_that_were_named(tmp_path):
    wanted = origins(tmp_path / "a.tfrecord", [payload(i) for i in range(6)])
    found = dict(read_previews((wanted[0].source, [wanted[4], wanted[1]]), FORM))
    assert [key[1] for key in found] == [1, 4]
    for (_, i), preview in found.items():
        assert preview.problem is None and preview.kept == {"note": f"note {i}"}
        pixels = tf.io.decode_image(preview.picture).numpy()
        assert pixels.shape == (4, 4, 1) and (pixels == round(255 * i / 10)).all()


@pytest.mark.parametrize(
    ("form", "change", "told"),
    [
        (FORM, lambda path: path.unlink(), "cannot be read again"),
        (FORM, lambda path: write_records(path, [payload(3)]), "has changed"),
        (FORM, lambda path: write_records(path, []), "is no longer where it was read"),
        (
            dataclasses.replace(FORM, parse_fn="no_such_module:parse"),
            lambda path: None,
            "no_such_module",
        ),
        (dataclasses.replace(FORM, keep_keys=("other",)), lambda path: None, "'other'"),
    ],
)
def test_what_cannot_be_shown_says_why(tmp_path, form, change, told):
    (wanted,) = origins(tmp_path / "a.tfrecord", [payload(2)])
    change(tmp_path / "a.tfrecord")
    ((_, preview),) = read_previews((wanted.source, [wanted]), form)
    assert preview.picture is None and told in preview.problem


def test_long_texts_are_cut(tmp_path):
    (origin,) = origins(
        tmp_path / "a.tfrecord", [example(image=np.zeros((4, 4), np.float32), note="x" * 1000)]
    )
    ((_, preview),) = read_previews((origin.source, [origin]), FORM)
    assert preview.kept == {"note": "x" * 300 + "…"}
