"""A gateway and a replica behind a real socket in this process, and callers who mean no good."""

import contextlib
import gzip
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from PIL import Image
from schemathesis.checks import not_a_server_error

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import publish_run
from serve.deployment import build_app_state
from serve.gateway import create_app
from serve.replica import Replica
from tests.unit.serve.conftest import Handle

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def address(storage: Path) -> Iterator[str]:
    config = ServeConfig.model_validate(
        {
            "storage": {"uri": str(storage)},
            "replicas": {"batch": 2},
            "limits": {"images": 2, "steps": 25, "side_px": 64, "body_bytes": 4 * 2**20},
            "refresh_s": 0.2,
            "safety": {"prompts": False},
        }
    )
    replica = Replica(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_WEBHOOK_SECRET", "whsec_c2VjcmV0")
        app = create_app(build_app_state(config, {"Replica": Handle(replica)}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    while not _is_ready(address):
        assert thread.is_alive()
    yield address
    server.should_exit = True
    thread.join(timeout=30)
    replica.__del__()


def _is_ready(address: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{address}/readyz", timeout=10).ok
    return False


def _is_alive(address: str) -> bool:
    body = {"prompt": "a robot", "num_inference_steps": 1}
    return requests.post(address + GENERATE, json=body, timeout=30).status_code == 200


def _png_of(width: int, height: int) -> bytes:
    """A true PNG of one colour: small on the wire, large in memory."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def _with_bomb_in_text() -> bytes:
    """A small PNG whose compressed text chunk unpacks to 256 MB."""
    data = _png_of(64, 64)
    body = b"zTXtcomment\x00\x00" + zlib.compress(bytes(2**28), 9)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize(
    "image",
    [_png_of(12000, 12000), _with_bomb_in_text(), b"\x1f\x8b" + bytes(1000), b"\x80\x04."],
    ids=["12000x12000", "text bomb", "gzip", "pickle"],
)
def test_images_that_are_traps(address: str, image: bytes) -> None:
    for field in ("image", "mask"):
        files = {"image": ("a.png", _png_of(64, 64)), field: ("b.png", image)}
        answer = requests.post(address + EDIT, data={"prompt": "x"}, files=files, timeout=30)
        print(f"{answer.elapsed.total_seconds():.3f} s  {answer.status_code}  {field}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
    assert _is_alive(address)


def test_bundles_that_are_traps(address: str, storage: Path) -> None:
    store, model = Store(str(storage)), model_directory("toyworld")
    for run_id in ("pickled", "damaged"):
        manifest.upload_folder_with_manifest(
            store.sub(f"aside/{run_id}"), "bundle", model, {"kind": "bundle"}
        )
    pickled = storage / "aside/pickled/bundle/manifest.json"
    content = json.loads(pickled.read_text())
    content["files"].append({"name": "unet/weights.bin", "size_bytes": 1, "sha256": "0" * 64})
    pickled.write_text(json.dumps(content))
    weights = storage / "aside/damaged/bundle/vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (storage / "aside").rename(storage / "runs")
    for run_id in ("pickled", "damaged"):
        publish_run(store.sub(f"runs/{run_id}"))
    codes = {"pickled": "model_unusable", "damaged": "model_damaged"}
    for model_id, code in codes.items():
        body = {"prompt": "x", "model": model_id, "num_inference_steps": 1}
        answer = requests.post(address + GENERATE, json=body, timeout=30)
        while answer.status_code == 404:  # until the gateway next looks into storage
            answer = requests.post(address + GENERATE, json=body, timeout=30)
        print(f"{answer.elapsed.total_seconds():.3f} s  {answer.status_code}  {model_id}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert _is_alive(address)


_JSON = "application/json"
_HOSTILE_REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("1 MB prompt", GENERATE, {"json": {"prompt": "x" * 2**20}}),
    ("NUL in a prompt", GENERATE, {"json": {"prompt": "a\0b"}}),
    ("id of 300 characters", GENERATE, {"json": {"prompt": "x", "model": "m" * 300}}),
    ("id that climbs", GENERATE, {"json": {"prompt": "x", "model": "../../etc/passwd"}}),
    ("gzip bomb", GENERATE, {"data": gzip.compress(bytes(2**26)),
                             "headers": {"Content-Encoding": "gzip"}}),
    ("deep JSON", GENERATE, {"data": b"[" * 10**6, "headers": {"Content-Type": _JSON}}),
    *(
        (f"webhook to {target}", "/v1/jobs", {"json": {"prompt": "x", "webhook_url": target}})
        for target in (
            "http://127.0.0.1:8265/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/",
            "http://10.0.0.1/", "http://0x7f000001/", "http://[::ffff:127.0.0.1]/", "file:///etc/passwd",
        )
    ),
    *(
        (f"path {path[:20]}", path, {})
        for path in ("/v1/models/..%2f..%2fetc", "/v1/models/%00", "/v1/models/" + "a" * 300,
                     "/page/..%2f..%2fpyproject.toml", "/v1/jobs/..%2f..%2fruns")
    ),
]  # fmt: skip


def test_words_that_are_traps(address: str) -> None:
    for name, path, arguments in _HOSTILE_REQUESTS:
        begun_s = time.monotonic()
        answer = requests.request(
            "POST" if arguments else "GET", address + path, timeout=30, **arguments
        )
        print(f"{time.monotonic() - begun_s:.3f} s  {answer.status_code}  {name}")
        assert 400 <= answer.status_code < 500, name
        assert set(answer.json()) == {"error"}
    assert _is_alive(address)


def test_requests_that_never_end_hold_nobody_up(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    slow = []
    for _ in range(20):
        sock = socket.create_connection((host, int(port)), timeout=10)
        sock.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{"
        )
        slow.append(sock)
    assert _is_alive(address)
    for sock in slow:
        sock.close()
    assert _is_alive(address)


def test_a_body_that_says_it_is_small_and_is_not(address: str) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(2**16)

    headers = {"content-type": "application/json"}
    # The server may close before all is sent: then there is no answer, and no harm either.
    with contextlib.suppress(requests.ConnectionError):
        answer = requests.post(address + GENERATE, data=parts(), headers=headers, timeout=30)
        assert answer.status_code in (400, 413)
    assert _is_alive(address)


def _fuzz(address: str, cases: int) -> dict[int, int]:
    """`cases` requests or more from the OpenAPI document, over all operations; by status."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    statuses: dict[int, int] = {}
    # An operation without parameters has one case: its share goes to the others.
    while operations and (missing := cases - sum(statuses.values())) > 0:
        share = -(-missing // len(operations))
        operations = [o for o in operations if _fuzz_operation(o, share, statuses) >= share]
    return statuses


def _fuzz_operation(operation: Any, cases: int, statuses: dict[int, int]) -> int:
    """At most `cases` requests of one operation, their answers counted; how many there were."""
    before = sum(statuses.values())

    @settings(
        max_examples=cases, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @_given(operation)
    def check_case(case: schemathesis.Case) -> None:
        answer = case.call_and_validate(checks=[not_a_server_error], timeout=60)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    check_case()
    return sum(statuses.values()) - before


def _given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())


def test_no_request_of_the_document_breaks_it(address: str) -> None:
    statuses = _fuzz(address, 22)
    assert max(statuses) < 500
    assert _is_alive(address)


@pytest.mark.fault
def test_no_request_of_two_thousand_breaks_it(address: str) -> None:
    started = time.monotonic()
    statuses = _fuzz(address, 2000)
    print(f"statuses {statuses}, {time.monotonic() - started:.0f} s")
    assert max(statuses) < 500
    assert sum(statuses.values()) >= 2000
    assert _is_alive(address)
