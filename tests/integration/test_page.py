"""The page in a real Chromium, over a real gateway and a real replica in this process."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from dreambooth_ray.config.serving import ServeConfig
from serve.front import open_house
from serve.gateway import create_app
from serve.replica import Replica
from tests.unit.serve.conftest import Handle

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    storage = tmp_path_factory.mktemp("storage")
    config = ServeConfig.model_validate(
        {"storage": {"uri": str(storage)}, "models": {"toyworld": "toyworld", "other": "toyworld"}}
    )
    replica = Replica(config)
    house = open_house(config, {"Replica": Handle(replica)})
    server = uvicorn.Server(uvicorn.Config(create_app(house), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the interval of a poll
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    replica.__del__()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, address: str, errors: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(address)
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    context.close()


def test_two_seeds_side_by_side_by_keyboard_alone(
    page: Page, errors: list[str], tmp_path: Path
) -> None:
    page.focus("#prompt")
    page.keyboard.type("a red robot on the beach")
    page.focus("summary")
    page.keyboard.press("Enter")
    page.fill("#seed", "3")
    page.fill("#steps", "12")
    page.focus("#compare")
    page.keyboard.press("Space")
    page.select_option("#model2", "other")
    page.fill("#seed2", "5")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    page.locator("#gallery li").nth(1).wait_for(timeout=60_000)
    assert page.locator("#stage figure").count() == 2
    assert page.inner_text("#status") == "done"
    # What was drawn is what the API draws from the receipt.
    page.locator("#gallery summary").first.click()
    receipt = page.locator("#gallery dl").first.inner_text()
    assert "12" in receipt
    assert "DDIM".lower() in receipt.lower()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    # The gallery outlives the page; a receipt goes back into the form.
    page.reload()
    page.wait_for_selector("html[data-ready=yes]")
    assert page.locator("#gallery li").count() == 2
    page.get_by_role("button", name="Draw again").last.click()
    assert page.input_value("#prompt") == "a red robot on the beach"
    assert page.input_value("#seed") in ("3", "5")
    assert errors == []


def test_the_picture_appears_from_noise(page: Page, errors: list[str]) -> None:
    page.evaluate(
        """() => { window.seen = new Set();
            new MutationObserver(() => document.querySelectorAll('#stage img').forEach(
              (i) => { if (i.src) window.seen.add(i.src); })).observe(
              document.getElementById('stage'),
              { subtree: true, childList: true, attributes: true }); }"""
    )
    page.fill("#prompt", "a blue boat")
    page.click("#draw")
    page.wait_for_selector("#gallery li", timeout=60_000)
    assert page.evaluate("window.seen.size") == 4, "three previews and the picture"
    assert errors == []


def test_refusals_are_shown_and_a_phone_has_room(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#prompt", "a naked robot")
    page.click("#draw")
    page.locator("#message:not(:empty)").wait_for()
    assert "policy" in page.inner_text("#message")
    assert page.is_enabled("#draw")
