"""Pages: their policy, and values in templates."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from tests.hostile_pages import hostile_influence_page, hostile_page
from transforms.reports.pages import render
from transforms.reports.previews import Preview

NOTHING = Preview()


@pytest.fixture(params=[hostile_page, hostile_influence_page], ids=["audit", "influence"])
def page(request) -> str:
    return request.param().decode()


def test_the_policy_allows_the_one_script_of_the_page(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_a_page_needs_no_other_file(page):
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "@import" not in page and "url(" not in page


def influence_page(class_names=None, preview=NOTHING, **card) -> str:
    row = {
        "test_id": "t",
        "test_label": 1,
        "test_prediction": 0,
        "test_probability": 0.25,
        "label_probability": 0.75,
        "self_influence": 0.123456,
        "proponents": [],
        "opponents": [],
        "wrong": True,
        **card,
    }
    values = {
        "cards": [row],
        "summed": False,
        "rows": 1,
        "settings": {"normalize": "none"},
        "notes": [],
        "problems": [],
        "repeated": [],
        "labels": [],
        "predictions": [],
    }
    return render("influence_page.html.j2", lambda _: preview, class_names, **values).decode()


@pytest.mark.parametrize(
    ("label", "names", "text"),
    [
        (1, ["a", "b<c"], "b&lt;c"),
        (1, None, "1"),
        ([0, 1], ["a", "b"], "a, b"),
        ([], None, "none"),
        (2.5, None, "2.5"),
        ([0.5, 1234.5], None, "0.5, 1,234"),
    ],
)
def test_labels_are_named_by_their_kind(label, names, text):
    page = influence_page(names, test_label=label, test_prediction=0 if names else label)
    assert f"labelled <strong><bdi>{text}</bdi></strong>" in page


@pytest.mark.parametrize(
    ("number", "text"), [(0.123456, "0.123"), (-999.4, "-999"), (123456.7, "123,457"), (0, "0")]
)
def test_numbers_have_three_digits_or_no_decimals(number, text):
    assert f"self-influence {text}<" in influence_page(self_influence=number)


@pytest.mark.parametrize(
    ("picture", "kind", "small"),
    [(b"\x89PNG\r\n", "png", True), (b"\xff\xd8\xff", "jpeg", False)],
)
def test_pictures_are_embedded_with_their_type(picture, kind, small):
    page = influence_page(preview=Preview(picture, {"note": "<kept>"}))
    data = base64.b64encode(picture).decode()
    assert f'src="data:image/{kind};base64,{data}"' in page
    assert ('class="small"' in page) is small and "&lt;kept&gt;" in page
