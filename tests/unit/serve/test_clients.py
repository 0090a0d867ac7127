"""What clients of OpenAI's API send and expect, each as it was seen to fail somewhere."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from dreambooth_ray.config.serving import CorsConfig, ServeConfig
from serve.deployment import build_app_state
from serve.gateway import create_app
from serve.replica import Replica
from tests.unit.serve.conftest import Handle

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
QUICK: dict[str, Any] = {"prompt": "a red robot", "num_inference_steps": 2, "seed": 5}
ORIGIN = "https://app.example"


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": "auto", "background": "auto", "moderation": "auto"},
        {"quality": "standard", "style": "vivid", "user": "somebody", "moderation": "low"},
        {"background": "opaque"},
        dict.fromkeys(
            ("n", "size", "quality", "style", "background", "moderation", "user", "stream", "model",
             "response_format", "output_format", "output_compression", "partial_images", "seed")
        ),
    ],
)  # fmt: skip
def test_fields_that_ask_for_nothing_are_taken(client: TestClient, fields: dict[str, Any]) -> None:
    plain = client.post(GENERATE, json=QUICK).json()["data"]
    seed = {} if "seed" not in fields else {"seed": 5}
    answer = client.post(GENERATE, json={**QUICK, **fields, **seed})
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == plain


def test_a_form_takes_them_as_well(client: TestClient, tile: Image.Image) -> None:
    out = io.BytesIO()
    tile.save(out, "PNG")
    fields = {"quality": "auto", "background": "auto", "input_fidelity": "low", "user": "u"}
    answer = client.post(
        EDIT,
        data={"prompt": "x", "num_inference_steps": "2", **fields},
        files={"image": ("a.png", out.getvalue())},
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quality", "hd"),
        ("quality", "high"),
        ("style", "natural"),
        ("background", "transparent"),
        ("moderation", "off"),
        ("user", 5),
        ("prompt", None),
    ],
)
def test_what_would_change_the_image_is_refused_by_name(
    client: TestClient, field: str, value: object
) -> None:
    answer = client.post(GENERATE, json={**QUICK, field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_an_image_by_url_is_the_image_and_its_url_is_signed(
    client: TestClient, storage: Path
) -> None:
    by_value = client.post(GENERATE, json=QUICK).json()["data"][0]
    answer = client.post(
        GENERATE,
        json={**QUICK, "response_format": "url"},
        headers={"X-Forwarded-Proto": "https", "Host": "images.example"},
    )
    assert answer.status_code == 200, answer.text
    image = answer.json()["data"][0]
    assert "b64_json" not in image
    assert "url" not in by_value
    assert image["receipt"] == by_value["receipt"]
    assert image["url"].startswith("https://images.example/v1/images/files/")
    path = image["url"].removeprefix("https://images.example")
    file = client.get(path)
    assert file.status_code == 200
    assert file.content == base64.b64decode(by_value["b64_json"])
    assert file.headers["content-type"] == "image/png"
    # An <img> of another site may show it.
    assert file.headers["cross-origin-resource-policy"] == "cross-origin"
    name = re.search(r"files/(\d+)-", path)
    assert name is not None
    later = path.replace(name[1], f"{int(name[1]) + 60:0{len(name[1])}}")
    other_sign, unsigned = path[:-1] + ("0" if path[-1] != "0" else "1"), path.partition("?")[0]
    for forged in (later, other_sign, unsigned, f"{unsigned}?signature=\u00e9"):
        refused = client.get(forged)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "invalid_signature")
    documented = client.get("/openapi.json").json()["paths"]["/v1/images/files/{name}"]["get"]
    assert "403" in documented["responses"]


def test_a_url_stays_with_its_key_and_ends_with_its_time(
    client: TestClient, config: ServeConfig, replica: Replica
) -> None:
    """Another gateway of the same storage serves it too, and forgets it when its time is up."""
    url = client.post(GENERATE, json={**QUICK, "response_format": "url"}).json()["data"][0]["url"]
    path = url.removeprefix("http://testserver")
    other = build_app_state(config, {"Replica": Handle(replica)})
    with TestClient(create_app(other)) as second_client:
        assert second_client.get(path).status_code == 200
        now_s = int(path.rpartition("/")[2].partition("-")[0])
        other.signed_files.remove_expired_images(now_s - 1)
        assert second_client.get(path).status_code == 200
        other.signed_files.remove_expired_images(now_s + 1)
        assert second_client.get(path).status_code == 404


def test_urls_are_refused_where_there_are_none(client: TestClient) -> None:
    for path, fields in ((GENERATE, {"stream": True}), ("/v1/jobs", {})):
        answer = client.post(path, json={**QUICK, "response_format": "url", **fields})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/images/generations", 404, None),
        ("GET", "/models", 404, None),
        ("POST", "/v1/v1/images/generations", 404, None),
        ("GET", "/v1/chat/completions", 404, None),
        ("POST", "/v1/chat/completions", 404, None),
        ("GET", "/v1", 404, None),
        ("GET", GENERATE, 405, "POST"),
        ("DELETE", GENERATE, 405, "POST"),
        ("PUT", "/v1/jobs/job_x", 405, "DELETE, GET, HEAD"),
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("POST", "/", 405, "GET, HEAD"),
        ("POST", "/page/main.js", 405, "GET, HEAD"),
        ("OPTIONS", GENERATE, 405, "POST"),
        ("GET", "/nothing", 404, None),
        ("GET", "/page/nothing.js", 404, None),
        ("GET", "/page", 404, None),
        ("GET", "/page/", 404, None),
    ],
)
def test_what_is_not_there_is_404_and_what_is_asked_otherwise_405(
    client: TestClient, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status, answer.text
    assert answer.headers.get("allow") == allow
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_client_with_the_wrong_base_url_is_told_the_right_one(client: TestClient) -> None:
    for path in ("/images/generations", "/v1/v1/images/generations", "/api/v1/images/generations"):
        error = client.post(path, json=QUICK).json()["error"]
        assert "http://testserver/v1" in error["message"], error
        behind_tls = client.post(path, json=QUICK, headers={"X-Forwarded-Proto": "https"})
        assert "https://testserver/v1" in behind_tls.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/images/generations/", "//v1//images/generations"])
def test_slashes_too_many_are_passed_over(client: TestClient, path: str) -> None:
    answer = client.post(f"http://testserver{path}", json=QUICK)
    assert answer.status_code == 200, answer.text
    assert client.get("/v1/models/", follow_redirects=False).status_code == 200
    assert client.get("/healthz/", follow_redirects=False).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/metrics", "/", "/docs"])
def test_head_is_get_without_a_body(client: TestClient, path: str) -> None:
    got, headed = client.get(path), client.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    for header in ("content-type", "content-length"):
        assert headed.headers.get(header) == got.headers.get(header) or path == "/metrics"


def test_other_origins_are_let_in_by_configuration_alone(
    client: TestClient, config: ServeConfig, replica: Replica
) -> None:
    asks = {
        "Origin": ORIGIN, "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
    }  # fmt: skip
    assert "access-control-allow-origin" not in client.options(GENERATE, headers=asks).headers
    opened = config.model_copy(update={"cors": CorsConfig(origins=(ORIGIN,))})
    app_state = build_app_state(opened, {"Replica": Handle(replica)})
    with TestClient(create_app(app_state)) as open_client:
        preflight = open_client.options(GENERATE, headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        answers = [
            open_client.post(GENERATE, json=QUICK, headers={"Origin": ORIGIN}),
            open_client.post(GENERATE, json={}, headers={"Origin": ORIGIN}),
            # Refused before any route is looked at.
            open_client.post(GENERATE, content=b"x" * 2**22, headers={"Origin": ORIGIN}),
        ]
        assert [a.status_code for a in answers] == [200, 400, 413]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "Retry-After" in answer.headers["access-control-expose-headers"]
        foreign = open_client.post(GENERATE, json=QUICK, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize("path", [GENERATE, "/v1/jobs"])
@pytest.mark.parametrize(
    "header", [None, "text/plain", "application/x-www-form-urlencoded", "application/octet-stream"]
)
def test_a_body_without_the_json_header_is_told_what_to_send(
    client: TestClient, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"Content-Type": header}
    answer = client.post(path, content=b'{"prompt": "x"}', headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_a_json_header_may_have_parameters(client: TestClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    body = b'{"prompt": "x", "num_inference_steps": 1}'
    assert client.post(GENERATE, content=body, headers=headers).status_code == 200
