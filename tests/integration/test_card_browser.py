"""A dataset card in a real browser: right numbers, pictures that load, no overflow, names that stay text."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from data.card import make_card
from data.quarantine import quarantine_page_path
from tests.card_dataset import HOSTILE, card_dataset
from tests.conftest import REPOSITORY

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium"),
]
SCREENSHOTS = REPOSITORY / "build" / "screenshots"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A card, that of an appended snapshot, and the page of what was left out, as files."""
    folder = tmp_path_factory.mktemp("card")
    dataset, first, appended = card_dataset(folder)
    assert first.quarantine_path is not None
    contents = {
        "card": make_card(dataset, first).encode(),
        "appended": make_card(dataset, appended).encode(),
        "left out": dataset.get(quarantine_page_path(first.quarantine_path)),
    }
    for name, content in contents.items():
        (folder / f"{name}.html").write_bytes(content)
    return {name: folder / f"{name}.html" for name in contents}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


@pytest.mark.parametrize("name", ["card", "appended", "left out"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_their_pictures_load(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if _is_fetched(request.url) else None)
    page.goto(pages[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) > 0
    assert min(widths) > 0
    assert problems == []
    _shoot(page, f"{name} {width}.png")
    page.close()


def test_a_reader_finds_the_numbers_and_a_hostile_name_stays_text(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page.goto(pages["card"].as_uri())
    expect(page).to_have_title("Dataset card " + page.locator("h1 + p code").inner_text())
    for number, label in (("26", "train images"), ("3", "eval images"), ("1", "near leaks, train and eval")):
        expect(page.locator(".tile").filter(has_text=label).locator("b")).to_have_text(number)
    expect(page.locator("h3").filter(has_text=HOSTILE)).to_be_visible()
    assert page.locator("script").count() == 0
    leak = page.locator("#duplicates figure").filter(has_text="train and eval").first
    expect(leak.locator("img")).to_have_count(2)
    page.get_by_role("link", name="Left out").click()
    expect(page.locator("#left-out h2")).to_be_in_viewport()
    _shoot(page, "card dark.png")
    page.close()


def _is_fetched(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def _shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    target = SCREENSHOTS / name
    page.screenshot(path=target, full_page=True)
    assert target.stat().st_size > 10_000, "an empty page"
