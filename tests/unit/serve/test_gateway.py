import asyncio
import base64
import contextlib
import io
import json
import re
import threading
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.sampling.request import Request
from serve.api_messages import Receipt
from serve.app_state import AppState
from serve.auth import APIKey, new_api_key
from serve.gateway import create_app
from serve.image_files import read_receipt
from serve.image_job_records import ImageJobState
from serve.image_job_store import ImageJobStore
from serve.replica import Replica

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
QUICK = {"prompt": "a red robot", "num_inference_steps": 2, "seed": 5}
OTHER_PARAMS = {
    "solver": "euler", "karras": True, "guidance_rescale": 0.5, "guidance_interval": [0.0, 0.9],
    "guidance_every": 2, "cache_every": 2, "clip_skip": 1,
}  # fmt: skip


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _image(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_images_are_those_their_receipts_describe(client: TestClient, replica: Replica) -> None:
    answer = client.post(GENERATE, json={**QUICK, "n": 3, **OTHER_PARAMS})
    assert answer.status_code == 200, answer.text
    images = answer.json()["data"]
    assert [i["receipt"]["seed"] for i in images] == [5, 6, 7]
    for image in images:
        receipt = Receipt.model_validate(image["receipt"])
        assert read_receipt(base64.b64decode(image["b64_json"])) == receipt
        request = Request(
            receipt.prompt, receipt.seed, receipt.negative_prompt,
            params=receipt.sampling_params, width_px=receipt.width, height_px=receipt.height,
        )  # fmt: skip
        engine = replica._model_cache.engines[0]
        assert receipt.weights_sha256 == engine.model_hash
        difference = [
            abs(a - b)
            for a, b in zip(
                engine.sample([request])[0].image.tobytes(),
                _image(image["b64_json"]).tobytes(),
                strict=True,
            )
        ]
        assert max(difference) <= 1


def test_a_stream_has_its_previews_and_its_image(client: TestClient) -> None:
    body = {**QUICK, "num_inference_steps": 8, "stream": True, "partial_images": 3}
    with client.stream("POST", GENERATE, json=body) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    events: list[dict[str, Any]] = [json.loads(line[6:]) for line in lines]
    assert [e["type"].rpartition(".")[2] for e in events] == ["partial_image"] * 3 + ["completed"]
    assert [e.get("partial_image_index") for e in events] == [0, 1, 2, None]
    assert events[3]["receipt"]["seed"] == 5
    assert len({_image(e["b64_json"]).tobytes() for e in events}) == 4


def test_an_edit_keeps_what_the_mask_keeps(client: TestClient, tile: Image.Image) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    answer = client.post(
        EDIT,
        data={"prompt": "a blue robot", "num_inference_steps": "4", "strength": "1", "seed": "1"},
        files={"image": ("a.png", _png(tile)), "mask": ("m.png", _png(mask))},
    )
    assert answer.status_code == 200, answer.text
    image = answer.json()["data"][0]
    assert image["receipt"]["strength"] == 1
    assert len(image["receipt"]["mask_sha256"]) == 64
    red, green, _ = _image(image["b64_json"]).convert("RGB").getpixel((56, 32))
    assert red > green + 60


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "quality": "hd"}, "quality"),
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "x" * 2000 * 500}, "prompt"),
        ({"prompt": "x", "n": 5}, "n"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "num_inference_steps": 61}, "num_inference_steps"),
        ({"prompt": "x", "size": "256x256"}, "size"),
        ({"prompt": "x", "size": "63x64"}, "size"),
        ({"prompt": "x", "size": "64"}, "size"),
        ({"prompt": "x", "solver": "magic"}, "solver"),
        ({"prompt": "x", "solver": "euler", "eta": 1}, "eta"),
        ({"prompt": "x", "karras": True}, "karras"),
        ({"prompt": "x", "guidance_interval": [0.5, 0.5]}, "guidance_interval"),
        ({"prompt": "x", "guidance_scale": 0.5}, "guidance_scale"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "model": "../etc"}, "model"),
        ({"prompt": "x", "model": "m" * 300}, "model"),
        ({"prompt": "x", "response_format": "link"}, "response_format"),
        ([], None),
        ("x", None),
    ],
)
def test_wrong_values_are_refused_by_name(
    client: TestClient, body: object, param: str | None
) -> None:
    answer = client.post(GENERATE, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(answer.text) < 1500


def test_bodies_that_are_no_request_are_refused(client: TestClient, tile: Image.Image) -> None:
    json_type = {"content-type": "application/json"}
    sent = [
        (GENERATE, b"{", json_type, 400),
        (GENERATE, b"[" * 10**6, json_type, 400),
        (GENERATE, b'{"prompt": "\xff"}', json_type, 400),
        (GENERATE, b'{"prompt": "\\ud800"}', json_type, 400),
        (GENERATE, b"x" * (2**21 + 1), json_type, 413),
        (GENERATE, b"\x1f\x8b", json_type | {"content-encoding": "gzip"}, 415),
        (EDIT, b"{}", json_type, 415),
        (EDIT, b"--x", {"content-type": "multipart/form-data"}, 400),
        (EDIT, b"--x--", {"content-type": "multipart/form-data; boundary=x"}, 400),
    ]
    for path, content, headers, status in sent:
        answer = client.post(path, content=content, headers=headers)
        assert (answer.status_code, "error" in answer.json()) == (status, True), (path, content[:9])
    image = {"image": ("a.png", _png(tile))}
    answer = client.post(EDIT, data={"prompt": "x"}, files=image | {"logo": ("b", b"")})
    assert answer.json()["error"]["param"] == "logo"
    assert client.post(EDIT, data={"prompt": "x"}).status_code in (400, 415)


@pytest.mark.parametrize(
    "path",
    ["/v1/models/..%2f..%2fetc", "/v1/models/%00", "/v1/models/" + "a" * 300, "/v1/nothing",
     "/v1/jobs/..%2fx", "/v1/jobs/job_0", "/v1/jobs/job_" + "0" * 32,
     "/v1/jobs/job_" + "0" * 32 + "/files/request.json", "/v1/models/none"],
)  # fmt: skip
def test_what_is_not_there_answers_404(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_models_health_and_metrics(client: TestClient) -> None:
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["toyworld"]
    assert client.get("/v1/models/toyworld").json()["kind"] == "base"
    assert client.get("/healthz").status_code == 200
    while client.get("/readyz").status_code != 200:
        pass
    client.post(GENERATE, json=QUICK)
    text = client.get("/metrics").text
    assert re.search(r'dreambooth_images_total{gateway="\w+",model="toyworld"} 1.0', text)
    assert re.search(r'dreambooth_in_hand{gateway="\w+",pool="Replica"} 0.0', text)
    headers = client.get("/healthz", headers={"x-request-id": "abc"}).headers
    assert headers["x-request-id"] == "abc"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({**QUICK, "logo": "hd"}, "unknown_parameter"),
        ({**QUICK, "prompt": "x" * 2**21}, "body_too_large"),
        # Found out by the replica, when the stream has begun.
        ({**QUICK, "size": "40x40", "stream": True}, "invalid_value"),
    ],
)
def test_refusals_are_counted_by_reason(
    client: TestClient, body: dict[str, Any], reason: str
) -> None:
    def count() -> float:
        counter = rf'^dreambooth_refusals_total{{gateway="\w+",reason="{reason}"}} (\S+)$'
        text = client.get("/metrics").text
        return sum(float(count) for count in re.findall(counter, text, re.MULTILINE))

    before = count()
    assert reason in client.post(GENERATE, json=body).text
    assert count() == before + 1


def test_keys_are_asked_for_and_never_told(
    app_state: AppState, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    key, digest = new_api_key()
    app_state.authenticator._keys = [APIKey(name="ann", sha256=digest, subjects=("other",))]
    assert client.post(GENERATE, json=QUICK).status_code == 401
    with caplog.at_level("INFO", "dreambooth.serve"):
        answer = client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert answer.json()["data"] == []
    assert key not in caplog.text
    assert client.get("/healthz").status_code == 200


def test_a_job_is_done_and_told_and_forgotten_by_others(client: TestClient) -> None:
    job = client.post("/v1/jobs", json={**QUICK, "n": 2, "num_inference_steps": 4}).json()
    while (state := client.get(f"/v1/jobs/{job['id']}").json())["status"] != "completed":
        assert state["status"] in ("queued", "running"), state
    assert (state["images_done"], len(state["receipts"])) == (2, 2)
    images = [client.get(path).content for path in state["images"]]
    assert [read_receipt(p) for p in images] == [
        Receipt.model_validate(r) for r in state["receipts"]
    ]
    direct = client.post(GENERATE, json={**QUICK, "n": 2, "num_inference_steps": 4}).json()
    assert [r["seed"] for r in state["receipts"]] == [d["receipt"]["seed"] for d in direct["data"]]
    assert client.get(f"/v1/jobs/{job['id']}/files/request.json").status_code == 404


def test_a_cancelled_job_gives_its_places_back(client: TestClient, app_state: AppState) -> None:
    body = {"prompt": "x", "n": 4, "num_inference_steps": 60}
    job = client.post("/v1/jobs", json=body).json()
    assert client.delete(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
    admission = app_state.pools["Replica"].admission
    assert (len(admission.queue), len(admission.in_hand)) == (0, 0)
    answer = client.get(f"/v1/jobs/{job['id']}").json()
    assert (answer["status"], answer["position"]) == ("cancelled", None)


def test_a_late_write_does_not_undo_a_cancellation(
    client: TestClient, app_state: AppState, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled, written = threading.Event(), threading.Event(), threading.Event()
    write = ImageJobStore.set_state

    def slow(jobs: ImageJobStore, job: str, state: ImageJobState) -> None:
        if state.status == "running":
            begun.set()
            cancelled.wait(0.5)
        write(jobs, job, state)
        if state.status == "running":
            written.set()
        if state.status == "cancelled":
            cancelled.set()

    monkeypatch.setattr(ImageJobStore, "set_state", slow)
    job = client.post("/v1/jobs", json={"prompt": "x", "num_inference_steps": 60}).json()
    assert begun.wait(30)
    client.delete(f"/v1/jobs/{job['id']}")
    assert written.wait(30)
    assert client.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
    # It was cancelled with its places reserved and nothing begun.
    admission = app_state.pools["Replica"].admission
    assert (len(admission.queue), len(admission.in_hand)) == (0, 0)


def test_a_configuration_for_people(config: ServeConfig) -> None:
    assert ServeConfig.model_validate(config.model_dump()) == config


def test_it_ends_though_what_it_watches_with_swallows_a_cancellation(
    app_state: AppState, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_cancelled = False

    async def watch() -> None:
        nonlocal is_cancelled
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        is_cancelled = True
        await asyncio.sleep(3600)

    monkeypatch.setattr(app_state.job_runner, "watch_jobs", watch)
    with TestClient(create_app(app_state)) as client:
        assert client.get("/healthz").status_code == 200
    assert is_cancelled
