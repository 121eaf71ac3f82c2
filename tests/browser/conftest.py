"""What all tests in a browser share: one Debian Chromium, headless, and pages that tell when something is wrong with them."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 20
"""That a page may take on a busy machine."""
Opener = Callable[..., AbstractContextManager["Page"]]


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    pytest.importorskip("playwright")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def opened_report(browser: "Browser") -> Opener:
    """Opens a report.html, once its charts are drawn; a message of the console, an error or a request fails the test."""
    from playwright.sync_api import expect

    @contextmanager
    def opened(file: Path, width: int = 1280, **options: Any) -> Iterator["Page"]:
        context = browser.new_context(viewport={"width": width, "height": 800}, **{"color_scheme": "light"} | options)
        context.set_default_timeout(SECONDS * 1000)
        page, told = context.new_page(), list[str]()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(file.as_uri())
        expect(page.locator("#scatter svg path").first).to_be_attached()
        yield page
        assert told == []
        context.close()

    return opened


def serious_findings(page: "Page") -> dict[str, list[str]]:
    """Of axe-core on the page with all of its details open: the first elements by rule."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.evaluate("document.querySelectorAll('#details details').forEach((node) => { node.open = true; })")
    found = axe.run(page).response["violations"]
    return {
        each["id"]: [node["html"] for node in each["nodes"]][:3] for each in found if each["impact"] in ("serious", "critical")
    }
