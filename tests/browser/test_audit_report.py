"""An audit's report in a real browser, with hostile data in it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from tests.browser.conftest import SCREENSHOTS, assert_fits_and_reads
from tests.hostile_pages import NAMES, hostile_page


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> pathlib.Path:
    written = tmp_path_factory.mktemp("report") / "report.html"
    written.write_bytes(hostile_page())
    return written


@pytest.fixture
def page(opened, path) -> Any:
    return opened(path)


def shown(page) -> list[str]:
    return page.eval_on_selector_all(
        "#gallery > li",
        "cards => cards.filter(c => c.offsetParent !== null).map(c => c.dataset.id)",
    )


def test_it_opens_with_the_answer_and_shows_every_picture_and_plot(page):
    assert page.inner_text("h1") == "6 of 40 labels are suspects"
    # The suspect's own, and of its neighbours, none of which is itself.
    assert (
        page.eval_on_selector_all("#gallery > li > img", "all => all.map(one => one.naturalWidth)")
        == [8] * 6
    )
    near = page.eval_on_selector_all(
        "#gallery > li", "all => all.map(one => one.querySelectorAll('.near img').length)"
    )
    assert near == [2, 2, 2, 3, 3, 3]
    assert [
        len(one)
        for one in page.eval_on_selector_all(
            "svg", "all => all.map(one => [...one.querySelectorAll('rect')])"
        )
    ] == [20, 4]
    boxes = page.eval_on_selector_all(
        "svg rect", "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert max(boxes) > 100
    page.screenshot(path=SCREENSHOTS / "audit.png", full_page=True)


def test_hostile_ids_and_names_are_text_and_do_nothing(page):
    text = page.inner_text("main")
    for name in NAMES:
        assert name in text
    slices = page.get_by_role("region", name="Influence on slices")
    assert (
        "<i>key</i> = </td><script>window.hacked=1</script>" in slices.inner_text()
        and "<u>serial</u>" in text
    )
    assert page.title() == "6 suspects in 40 examples – training set audit"
    assert page.eval_on_selector_all("script", "all => all.length") == 1
    assert page.evaluate("window.hacked") is None
    assert shown(page)[0] == "<script>window.hacked=1</script>"
    # A mark that turns the writing direction ends with its own text.
    turned = page.locator("#gallery > li").filter(has=page.locator(".id", has_text="\u202eturned"))
    assert turned.locator("bdi").first.inner_text() == "\u202eturned"
    assert turned.locator("p").nth(1).inner_text().startswith("labelled")


def test_duplicates_stand_side_by_side_with_their_pictures(page):
    groups = page.locator("section.group")
    assert (
        groups.count() == 2
        and page.locator("h2#duplicates").inner_text() == "Duplicates with conflicting labels"
    )
    boxes = (
        groups.nth(1)
        .locator("li")
        .evaluate_all(
            "all => all.map(one => one.getBoundingClientRect()).map(one => [one.x, one.y])"
        )
    )
    assert len({y for _, y in boxes}) == 1 and len({x for x, _ in boxes}) == 3
    assert groups.nth(0).locator("h3").inner_text() == f"{NAMES[0]} / {NAMES[1]}"
    assert (
        "equal input" in groups.nth(0).inner_text()
        and "similarity 0.9950" in groups.nth(1).inner_text()
    )
    assert groups.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)") == [8] * 5


def test_a_script_from_data_would_be_stopped_by_the_policy(page):
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; "
        "document.body.append(s)"
    )
    assert page.evaluate("window.hacked") is None
    page.evaluate(
        "document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))"
    )
    page.wait_for_timeout(100)
    refused = [told for told in page.heard if "Content Security Policy" in told]
    assert len(refused) == 2
    page.heard = [
        told for told in page.heard if told not in refused and "example.invalid" not in told
    ]


def test_sorting_and_filtering(page):
    page.fill("#find", "PLAIN")
    assert shown(page) == ["plain-0", "plain-1"] and page.inner_text("#shown") == "2 of 6 shown"
    page.fill("#find", "")
    page.select_option("[data-filter=label]", "1")
    assert set(
        page.eval_on_selector_all(
            "#gallery > li:not([hidden])", "all => all.map(one => one.dataset.label)"
        )
    ) == {"1"}
    page.select_option("[data-filter=label]", "")
    page.select_option("#sort", "influence")
    influence = [
        float(one)
        for one in page.eval_on_selector_all(
            "#gallery > li", "all => all.map(one => one.dataset.influence)"
        )
    ]
    assert influence == sorted(influence, reverse=True) and len(influence) == 6
    page.select_option("#sort", "id")
    assert shown(page) == sorted(shown(page))
    button = page.locator("section[aria-labelledby=classes]").get_by_role("button", name="examples")
    for order in ("descending", "ascending"):
        # By keyboard alone.
        button.focus()
        page.keyboard.press("Enter")
        assert page.get_attribute("th:has(button)", "aria-sort") == order
        cells = [
            int(one)
            for one in page.eval_on_selector_all(
                "section[aria-labelledby=classes] tbody tr",
                "r => r.map(x => x.cells[1].dataset.value)",
            )
        ]
        assert cells == sorted(cells, reverse=order == "descending")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phone", {"viewport": {"width": 360, "height": 740}}),
        ("dark", {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"}),
        ("no-script", {"viewport": {"width": 1200, "height": 900}, "java_script_enabled": False}),
    ],
)
def test_it_fits_a_phone_and_the_dark_and_works_without_scripts(opened, path, name, options):
    page = opened(path, **options)
    page.screenshot(path=SCREENSHOTS / f"audit-{name}.png", full_page=True)
    assert page.locator("#gallery > li").count() == 6
    if name == "no-script":
        assert page.locator("#controls").is_hidden()
    else:
        assert_fits_and_reads(page, options["viewport"]["width"], name == "dark")


def test_print_leaves_the_controls_out(page):
    page.emulate_media(media="print")
    assert (
        page.locator("#controls").is_hidden() and page.locator("#gallery > li").first.is_visible()
    )
    page.pdf(path=SCREENSHOTS / "audit.pdf")


def test_every_control_and_picture_has_a_name(page):
    assert page.get_by_role("searchbox", name="Id contains").count() == 1
    for name in ("Label", "Looks like", "Sort by"):
        assert page.get_by_role("combobox", name=name, exact=True).count() == 1
    assert page.eval_on_selector_all("img", "all => all.every(one => one.alt)")
    assert page.eval_on_selector_all(
        "svg", "all => all.every(one => one.getAttribute('aria-label'))"
    )
    assert page.get_by_role("heading", level=1).count() == 1
