"""The report of influence in a real browser, with hostile data in it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from tests.browser.conftest import SCREENSHOTS, assert_fits_and_reads
from tests.hostile_pages import NAMES, hostile_influence_page


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> pathlib.Path:
    written = tmp_path_factory.mktemp("report") / "report.html"
    written.write_bytes(hostile_influence_page())
    return written


@pytest.fixture
def page(opened, path) -> Any:
    return opened(path)


def shown(page) -> list[str]:
    return page.eval_on_selector_all(
        "#gallery > li", "all => all.filter(c => c.offsetParent !== null).map(c => c.dataset.id)"
    )


def test_each_test_example_stands_beside_its_candidates_with_their_pictures(page):
    assert page.inner_text("h1") == "The 6 worst-predicted of 1,000 test examples"
    assert "predicts another class for 3 of them" in page.inner_text(
        "header"
    ) and "<u>note</u>" in page.inner_text("header")
    widths = page.eval_on_selector_all("#gallery img", "all => all.map(one => one.naturalWidth)")
    assert widths == [8] * (6 + 6 * 3 + sum(i % 4 for i in range(6)))
    article = page.locator("article").nth(3)
    columns = [
        article.locator(one).first.bounding_box()
        for one in (".asked", "section >> nth=0", "section >> nth=1")
    ]
    assert (
        columns[0]["x"] < columns[1]["x"] < columns[2]["x"]
        and len({round(one["y"]) for one in columns}) == 1
    )
    assert article.locator("section").nth(1).locator("li").count() == 3
    assert "+3.5" in article.inner_text() and "-1,234" in article.inner_text()
    assert page.locator("article").nth(0).locator("section").nth(1).inner_text().split() == [
        "Opponents",
        "none",
    ]
    page.screenshot(path=SCREENSHOTS / "influence.png", full_page=True)


def test_hostile_ids_and_names_are_text_and_do_nothing(page):
    text = page.inner_text("main")
    for name in NAMES:
        assert name in text
    assert page.evaluate("window.hacked") is None and page.locator("script").count() == 1
    assert shown(page)[0] == "<script>window.hacked=1</script>"
    assert page.locator("h3 bdi").nth(2).inner_text() == "\u202eturned"


def test_sorting_and_filtering(page):
    page.fill("#find", "PLAIN")
    assert shown(page) == ["plain-0", "plain-1"] and page.inner_text("#shown") == "2 of 6 shown"
    page.fill("#find", "")
    page.select_option("[data-filter=label]", "1")
    page.select_option("[data-filter=prediction]", "2")
    assert shown(page) == ["plain-0"]
    for one in ("label", "prediction"):
        page.select_option(f"[data-filter={one}]", "")
    first = shown(page)
    page.select_option("#sort", "influence")
    influence = [
        float(one)
        for one in page.eval_on_selector_all(
            "#gallery > li", "all => all.map(one => one.dataset.influence)"
        )
    ]
    assert influence == sorted(influence, reverse=True) and shown(page) != first
    page.select_option("#sort", "rank")
    assert shown(page) == first


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phone", {"viewport": {"width": 360, "height": 740}}),
        ("dark", {"color_scheme": "dark"}),
        ("no-script", {"java_script_enabled": False}),
    ],
)
def test_it_fits_a_phone_and_the_dark_and_works_without_scripts(opened, path, name, options):
    page = opened(path, **options)
    page.screenshot(path=SCREENSHOTS / f"influence-{name}.png", full_page=True)
    assert page.locator("article").count() == 6
    if name == "no-script":
        assert page.locator("#controls").is_hidden()
    else:
        assert_fits_and_reads(
            page, options.get("viewport", {"width": 1200})["width"], name == "dark"
        )


def test_print_leaves_the_controls_out(page):
    page.emulate_media(media="print")
    assert page.locator("#controls").is_hidden() and page.locator("article").first.is_visible()
    page.pdf(path=SCREENSHOTS / "influence.pdf")


def test_every_control_picture_and_part_has_a_name(page):
    assert page.get_by_role("searchbox", name="Id contains").count() == 1
    for name in ("Label", "Predicted", "Sort by"):
        assert page.get_by_role("combobox", name=name, exact=True).count() == 1
    assert page.eval_on_selector_all("img", "all => all.every(one => one.alt)")
    assert page.get_by_role("article", name="plain-1").count() == 1
    assert page.get_by_role("region", name="Proponents of plain-1").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
