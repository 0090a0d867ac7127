"""What the page sends of its field for adapters, by its own files and answers made here."""

import json
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve import gateway
from tests.integration.test_page import CHROMIUM, FLAGS, fill_more_fields, sync_api

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
ADDRESS = "http://endpoint.test"
FILES = Path(gateway.__file__).parent / "page"
RECEIPT = {
    "model": "dog", "prompt": "a dog", "negative_prompt": "", "seed": 3, "width": 64, "height": 64,
    "num_inference_steps": 2, "guidance_scale": 3, "solver": "ddim", "weights_sha256": "0" * 64,
    "adapters": [
        {"model": None, "file": "style.safetensors", "weight": 0.5, "sha256": "1" * 64},
        {"model": "cat@0123456789ab", "file": None, "weight": -1, "sha256": "2" * 64},
    ],
}  # fmt: skip


def answer(route: Any) -> None:
    path = route.request.url.removeprefix(ADDRESS)
    if path.startswith("/v1/models"):
        models = {"data": [{"id": "dog", "kind": "adapter"}], "has_more": False}
        route.fulfill(json=models)
    elif path.startswith("/v1/"):
        event = {"type": "image_generation.completed", "b64_json": "", "receipt": RECEIPT}
        text = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
        route.fulfill(body=text, content_type="text/event-stream")
    else:
        file = FILES / (path.removeprefix("/page/") if path != "/" else "index.html")
        route.fulfill(path=file, content_type=mimetypes.guess_type(file.name)[0])


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.route("**/*", answer)
        page.goto(ADDRESS)
        page.wait_for_selector("html[data-ready=yes]")
        yield page
        browser.close()


def test_adapters_are_given_by_name_and_weight_and_come_back_with_a_receipt(page: Any) -> None:
    page.fill("#prompt", "a dog")
    fill_more_fields(page, adapters=" style.safetensors:0.5, cat:-1e-1,flat/pose.safetensors ,")
    with page.expect_request("**/v1/images/generations") as sent:
        page.click("#draw")
    assert sent.value.post_data_json["adapters"] == [
        {"file": "style.safetensors", "weight": 0.5},
        {"model": "cat", "weight": -0.1},
        {"file": "flat/pose.safetensors", "weight": 1},
    ]
    page.locator("#gallery li").first.wait_for()
    assert "style.safetensors:0.5" in page.locator("#gallery dl").first.text_content()
    page.fill("#adapters", "")
    page.click("text=Draw again")
    assert page.input_value("#adapters") == "style.safetensors:0.5, cat@0123456789ab:-1"
    assert page.locator("#carried").is_hidden()
