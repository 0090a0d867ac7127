"""The code of serve/README.md, run in the order in which it stands there."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from standardwebhooks import Webhook

from dreambooth_ray.config.serving import AuthConfig, ProvenanceConfig, ServeConfig
from serve.auth import APIKey, new_api_key
from serve.replica import Replica
from serve.safety import ContentPolicy
from tests.integration.site import Site
from tests.unit.serve.test_provenance import config as provenance

__all__ = ["provenance"]
README = Path(__file__).parents[2] / "serve" / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def readme_names(
    tmp_path_factory: pytest.TempPathFactory, provenance: ProvenanceConfig
) -> Iterator[dict[str, Any]]:
    """What the names stand for after all Python blocks have run."""
    folder = tmp_path_factory.mktemp("readme")
    key, digest = new_api_key()
    (folder / "keys.yaml").write_text(f"- {{name: shop, sha256: {digest}}}")
    config = ServeConfig.model_validate(
        {"storage": {"uri": str(folder / "out")}, "provenance": provenance.model_dump()}
    ).model_copy(update={"auth": AuthConfig(keys_file=str(folder / "keys.yaml"))})
    replica, names = Replica(config), dict[str, Any]()
    with Site(config, replica) as site, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks("python"):
            code = block.replace("http://localhost:8000", site.address).replace("db-...", key)
            exec(compile(code, str(README), "exec"), names)
        with Image.open("robot.png") as image, Image.open("by_url.png") as by_url:
            names["receipt_in_image"] = json.loads(image.info["receipt"])
            names["receipt_by_url"] = json.loads(by_url.info["receipt"])
    names["client"].close()
    names["api"].close()
    replica.__del__()
    yield names


def test_images_receipts_and_edits(readme_names: dict[str, Any]) -> None:
    assert readme_names["receipt_in_image"] == {
        k: v for k, v in readme_names["receipt"].items() if v is not None
    }
    assert readme_names["receipt_by_url"] == readme_names["receipt_in_image"]
    assert readme_names["event"].type == "image_generation.completed"
    assert readme_names["event"].b64_json
    assert readme_names["edited"].data[0].receipt["strength"] == 0.6


def test_jobs(readme_names: dict[str, Any]) -> None:
    assert readme_names["job"]["status"] == "completed"
    assert [data[:4] for data in readme_names["pictures"]] == [b"\x89PNG"] * 2


def test_webhooks_are_verified(readme_names: dict[str, Any]) -> None:
    secret, body = "whsec_c2VjcmV0", '{"type": "job.completed"}'
    now_utc = datetime.now(tz=UTC)
    headers = {
        "webhook-id": "msg_1", "webhook-timestamp": str(int(now_utc.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", now_utc, body),
    }  # fmt: skip
    assert readme_names["on_webhook"](body.encode(), headers, secret)["type"] == "job.completed"


def test_refusals_name_the_phrase(readme_names: dict[str, Any]) -> None:
    details = readme_names["refusal"]["details"]
    assert details["category"] == "sexual"
    assert details["spans"] == [[2, 7, "naked"]]


def test_provenance(readme_names: dict[str, Any]) -> None:
    assert readme_names["origin"]["found"]
    assert readme_names["origin"]["valid"]
    assert readme_names["origin"]["receipt"]["seed"] == 3


def test_the_yaml_is_what_the_endpoint_takes() -> None:
    keys, policy, endpoint = (yaml.safe_load(block) for block in blocks("yaml"))
    assert APIKey.model_validate(keys[0]).images_per_day == 500
    assert set(ContentPolicy.model_validate(policy).categories) == {"brands", "minors"}
    assert ServeConfig.model_validate(endpoint).safety.images == "yahoo-open-nsfw"


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert link.startswith("http") or (README.parent / link).exists(), link
