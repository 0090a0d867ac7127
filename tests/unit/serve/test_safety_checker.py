"""What the checks keep from callers, through a gateway."""

import hashlib
from collections.abc import Iterator

import pytest
from PIL import Image
from starlette.testclient import TestClient

from dreambooth_ray.config.serving import SafetyConfig, ServeConfig
from serve.deployment import build_app_state
from serve.gateway import create_app
from serve.replica import Replica
from tests.unit.serve.conftest import Handle

GENERATE = "/v1/images/generations"
QUICK = {"prompt": "a red robot", "num_inference_steps": 8, "seed": 5}


class Everything:
    """A classifier that lets no image through."""

    category, threshold = "pictures", 0.5

    def __init__(self, model: str | None) -> None:
        pass

    def score(self, image: Image.Image) -> float:
        return 1.0


@pytest.fixture
def strict(config: ServeConfig, replica: Replica) -> Iterator[TestClient]:
    safety = SafetyConfig(images="tests.unit.serve.test_safety_checker:Everything")
    app_state = build_app_state(
        config.model_copy(update={"safety": safety}), {"Replica": Handle(replica)}
    )
    with TestClient(create_app(app_state), raise_server_exceptions=False) as client:
        yield client


def test_a_refused_image_has_no_previews_either(strict: TestClient) -> None:
    body = {**QUICK, "stream": True, "partial_images": 3}
    with strict.stream("POST", GENERATE, json=body) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert events == ["event: error"]
    refused = strict.post(GENERATE, json=QUICK)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "content_policy_violation"
    assert refused.json()["error"]["param"] == "image"


def test_only_what_is_asked_for_is_held_against_the_policy(
    config: ServeConfig, replica: Replica
) -> None:
    app_state = build_app_state(
        config.model_copy(update={"safety": SafetyConfig()}), {"Replica": Handle(replica)}
    )
    with TestClient(create_app(app_state)) as client:
        kept_away = {**QUICK, "negative_prompt": "nude, gore"}
        assert client.post(GENERATE, json=kept_away).status_code == 200
        refused = client.post(GENERATE, json={**QUICK, "prompt": "a nude robot"})
        details = refused.json()["error"]["details"]
        assert details["spans"] == [[2, 6, "nude"]]
        assert details["fingerprint"] == hashlib.sha256(b"a nude robot").hexdigest()
