"""A headless Chromium, and pages in it that hear what they ask for and say."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = pathlib.Path("build/screenshots")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Any]]:
    """Opens a file in a context of its own; asserts at the end that nothing but the file and
    pictures inside it was asked for or said.
    """
    contexts, pages = [], []

    def open_page(path: pathlib.Path, **options: Any) -> Any:
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        )
        page = contexts[-1].new_page()
        pages.append(page)
        page.heard = []
        page.on("request", lambda request: page.heard.append(request.url))
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("dialog", lambda dialog: page.heard.append(dialog.message))
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        assert [told for told in page.heard if not told.startswith(("file:", "data:image/"))] in (
            [],
            ["data:,"],
        )
        assert len([told for told in page.heard if told.startswith("file:")]) == 1
    for context in contexts:
        context.close()


def assert_fits_and_reads(page: Any, width: int, dark: bool) -> None:
    """Asserts that nothing is wider than the screen, and that ink and paper are far apart, the ink
    being the lighter one in the dark.
    """
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = (
        page.evaluate(f"getComputedStyle(document.body).{one}")
        for one in ("color", "backgroundColor")
    )
    ink, paper = (sum(int(part) for part in one[4:-1].split(",")) / 3 for one in colours)
    assert abs(ink - paper) > 180
    assert (ink > paper) == dark
