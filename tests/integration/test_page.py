"""The web page in a real Chromium, in front of a real gateway and a real replica."""

import base64
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.config.machines import StorageConfig
from dreambooth_ray.config.serving import AuthConfig, ServeConfig
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import publish_run
from serve.auth import new_api_key
from serve.image_files import read_receipt
from serve.replica import Replica
from tests.integration.conftest import kill_tree, start_dreambooth
from tests.integration.site import Site
from tests.integration.test_serve import wait_for_address
from tests.unit.serve.test_subject_pages import write_entries

sync_api = pytest.importorskip("playwright.sync_api", reason="the test extra is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ROBOT = "a red robot on the beach"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    storage = {"uri": str(tmp_path_factory.mktemp("page"))}
    models = {"toyworld": "toyworld", "other": "toyworld"}
    settings = {"storage": storage, "models": models, "replicas": {"batch": 2}}
    return ServeConfig.model_validate(settings)


@pytest.fixture(scope="module")
def replica(config: ServeConfig) -> Iterator[Replica]:
    replica = Replica(config)
    yield replica
    replica.__del__()


@pytest.fixture(scope="module")
def site(config: ServeConfig, replica: Replica) -> Iterator[str]:
    with Site(config, replica) as site:
        yield site.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    """The page, just opened; no error on its console and no request elsewhere is let through."""
    context = browser.new_context()
    context.set_default_timeout(20_000)
    page, faults, elsewhere = context.new_page(), list[str](), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith((site, "data:", "blob:"))
            else elsewhere.append(r.url))  # fmt: skip
    open_page(page, site)
    yield page
    client_error = re.compile(r"status of 4\d\d")
    assert [f for f in faults if not client_error.search(f)] == []
    assert elsewhere == []
    context.close()


def open_page(page: Any, site: str) -> None:
    page.goto(site)
    page.wait_for_selector("html[data-ready=yes]")


def fill_more_fields(page: Any, **fields: str) -> None:
    """Fill fields under `More`."""
    page.evaluate("document.querySelector('#form details').open = true")
    for name, value in fields.items():
        page.fill(f"#{name}", value)


def generate_image(page: Any, prompt: str, **fields: str) -> Any:
    """Generate with these fields and wait for the newest card of the gallery."""
    cards = page.locator("#gallery li")
    before = cards.count()
    page.fill("#prompt", prompt)
    fill_more_fields(page, steps="6", **fields)
    page.click("#draw")
    cards.nth(before).wait_for()
    page.locator("#draw:enabled").wait_for()
    return cards.first


def read_image_source(card: Any) -> str:
    return str(card.locator("img").get_attribute("src"))


def test_an_image_appears_from_noise_and_stays_with_its_receipt(page: Any, site: str) -> None:
    page.evaluate(
        """() => {
          window.seen = new Set();
          const look = () => document.querySelectorAll("#stage img[src]")
            .forEach((image) => window.seen.add(image.src));
          new MutationObserver(look).observe(document.getElementById("stage"),
            { subtree: true, attributes: true, childList: true });
        }"""
    )
    card = generate_image(page, ROBOT, seed="3")
    # Three previews, then the image.
    assert page.evaluate("window.seen.size") == 4
    open_page(page, site)
    card = page.locator("#gallery li").first
    card.locator("summary").click()
    assert "Seed\n3" in card.locator("dl").inner_text()
    with page.expect_download() as download:
        card.get_by_text("Download").click()
    data = base64.b64decode(read_image_source(card).partition(",")[2])
    assert download.value.path().read_bytes() == data
    receipt = read_receipt(data)
    assert receipt is not None
    assert (receipt.prompt, receipt.seed) == (ROBOT, 3)


def test_draw_again_gives_the_same_image(page: Any) -> None:
    first = generate_image(page, ROBOT, seed="3", guidance="5", negative="a hat")
    first_source = read_image_source(first)
    assert read_image_source(generate_image(page, "a blue boat", seed="4")) != first_source
    page.fill("#negative", "")
    page.locator("#gallery li").last.get_by_role("button", name="Draw again").click()
    assert page.input_value("#prompt") == ROBOT
    page.click("#draw")
    page.locator("#gallery li").nth(2).wait_for()
    assert read_image_source(page.locator("#gallery li").first) == first_source


def test_draw_again_has_the_parameters_that_the_form_has_no_field_for(page: Any) -> None:
    more = {"guidance_every": 2, "guidance_interval": [0.0, 0.8], "clip_skip": 1}
    page.route(
        "**/v1/images/generations",
        lambda route: route.continue_(post_data={**route.request.post_data_json, **more}),
    )
    source = read_image_source(generate_image(page, ROBOT, seed="3"))
    page.unroute("**/v1/images/generations")
    assert read_image_source(generate_image(page, ROBOT, seed="3")) != source
    page.locator("#gallery li").last.get_by_role("button", name="Draw again").click()
    assert "guidance_every 2, " in page.locator("#carried").inner_text()
    page.click("#draw")
    page.locator("#gallery li").nth(2).wait_for()
    assert read_image_source(page.locator("#gallery li").first) == source
    page.click("#drop")
    assert page.locator("#carried").is_hidden()


def test_subjects_and_seeds_are_compared_side_by_side_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.fill("#prompt", ROBOT)
    fill_more_fields(page, steps="6", seed="3")
    page.check("#compare")
    page.select_option("#model2", "other")
    page.fill("#seed2", "4")
    page.click("#draw")
    page.locator("#gallery li").nth(1).wait_for()
    page.locator("#draw:enabled").wait_for()
    one, other = (page.locator("#stage figure").nth(k).bounding_box() for k in range(2))
    assert one["y"] == other["y"]
    assert one["x"] + one["width"] <= other["x"]
    assert page.locator("#stage figcaption").all_inner_texts() == [
        "toyworld, seed 3", "other, seed 4",
    ]  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_is_enough(page: Any) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.type(ROBOT)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.locator("#steps").wait_for()
    page.keyboard.press("Control+Enter")
    page.locator("#gallery li").first.wait_for()
    names = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"model", "seed", "solver", "compare", "draw", "Receipt", "Download", "Remove"} <= names


def test_what_is_refused_is_said_and_shown_as_text(page: Any) -> None:
    page.fill("#prompt", "a naked <img src=x onerror=alert(1)> robot")
    page.click("#draw")
    page.get_by_text("against the policy").wait_for()
    card = generate_image(page, "<img src=x onerror=alert(1)> robot")
    assert card.locator("img").count() == 1
    assert "<img" in card.inner_text()


def test_stop_gives_the_place_back(page: Any, site: str) -> None:
    page.fill("#prompt", ROBOT)
    fill_more_fields(page, steps="150")
    page.click("#draw")
    page.locator("#stage img[src]").wait_for()
    page.click("#stop")
    page.locator("#draw:enabled").wait_for()
    assert page.locator("#gallery li").count() == 0
    for _ in range(100):
        with urllib.request.urlopen(f"{site}/metrics", timeout=10) as answer:
            if re.search(r'dreambooth_in_hand{[^}]*pool="Replica"} 0.0', answer.read().decode()):
                return
        page.wait_for_timeout(50)
    raise AssertionError("the image is still being drawn")


def test_a_key_is_asked_for_and_used(
    browser: Any, config: ServeConfig, replica: Replica, tmp_path: Path
) -> None:
    key, digest = new_api_key()
    (tmp_path / "keys.yaml").write_text(f"- {{name: ann, sha256: {digest}}}")
    closed = config.model_copy(update={"auth": AuthConfig(keys_file=str(tmp_path / "keys.yaml"))})
    context = browser.new_context()
    with Site(closed, replica) as site:
        page = context.new_page()
        open_page(page, site.address)
        assert page.locator("#model option").count() == 0
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.locator("#model option").first.wait_for(state="attached")
        generate_image(page, ROBOT)
        assert page.locator("#locked").is_hidden()
        context.close()


def test_an_edit_starts_from_a_file(page: Any, tmp_path: Path) -> None:
    first_card = generate_image(page, ROBOT, seed="3")
    start = tmp_path / "start.png"
    start.write_bytes(base64.b64decode(read_image_source(first_card).partition(",")[2]))
    page.set_input_files("#image", start)
    card = generate_image(page, "a blue robot on the beach", seed="3", strength="0.5")
    receipt = read_receipt(base64.b64decode(read_image_source(card).partition(",")[2]))
    assert receipt is not None
    assert receipt.strength == 0.5


@pytest.mark.fault
def test_the_page_of_dreambooth_serve(browser: Any, tmp_path: Path) -> None:
    process = start_dreambooth("serve", "--port", "0", cwd=tmp_path)
    context = browser.new_context()
    try:
        address, page = wait_for_address(process), context.new_page()
        open_page(page, address)
        receipt = read_receipt(
            base64.b64decode(read_image_source(generate_image(page, ROBOT)).partition(",")[2])
        )
        assert receipt is not None
        assert receipt.model == "toyworld"
    finally:
        context.close()
        kill_tree(process)


def test_of_more_subjects_than_a_list_holds_one_is_named(
    browser: Any, config: ServeConfig, replica: Replica, tmp_path: Path
) -> None:
    storage = Store(str(tmp_path))
    write_entries(str(tmp_path), {f"dog-{k}" for k in range(600)})
    run = storage.sub("runs/zebra")
    manifest = b'{"about": {"kind": "bundle", "prompt": "a sks zebra"}, "files": []}'
    run.write("bundle/manifest.json", manifest)
    publish_run(run)
    storage.write(paths.CATALOG_COMPLETE, b"{}")
    many = config.model_copy(update={"storage": StorageConfig(uri=str(tmp_path))})
    with Site(many, replica) as site:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        open_page(page, site.address)
        assert page.locator("#model option").count() == 501
        for name, prompt in (("nobody", ROBOT), ("zebra", "a sks zebra")):
            page.once("dialog", lambda dialog, name=name: dialog.accept(name))
            page.select_option("#model", "?")
            page.wait_for_function(
                "([name, prompt]) => document.getElementById('prompt').placeholder === prompt"
                " && (document.getElementById('model').value === name"
                " || document.getElementById('message').textContent.includes(name))",
                arg=[name, prompt],
            )
        assert page.input_value("#model") == "zebra"
        page.close()
