import asyncio
import base64
import contextlib
import json
import socket
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook

from dreambooth_ray.errors import ConfigError
from serve.webhooks import (
    PinnedTransport,
    check_webhook_secret,
    deliver_webhook_event,
    resolve_public_address,
)

SECRET = "whsec_" + base64.b64encode(b"a secret of the test's own").decode()
PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x",
        "http://localhost:8000/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.7/",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://example.com@127.0.0.1/",
        "http://user:pass@93.184.215.14/",
        "ftp://93.184.215.14/",
        "file:///etc/passwd",
        "http:///nothing",
        "http://93.184.215.14:99999/",
        "http://no-such-host.invalid/",
        "gopher://127.0.0.1:25/",
        "http://" + "a" * 300 + "/",
    ],
)
def test_targets_inside_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="webhook_url"):
        resolve_public_address(url)


def test_a_public_address_is_taken() -> None:
    assert resolve_public_address(f"https://{PUBLIC}/hook") == PUBLIC


def test_a_name_with_one_address_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(2, 1, 6, "", (PUBLIC, 443)), (2, 1, 6, "", ("10.1.2.3", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: both)
    with pytest.raises(ConfigError, match="not public"):
        resolve_public_address("https://rebinding.example/")


class FakeTransport(httpx2.AsyncBaseTransport):
    """Answers in turn, and keeps the requests."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses, self.requests, self.addresses = statuses, list[httpx2.Request](), list[str]()

    def for_address(self, address: str) -> "FakeTransport":
        self.addresses.append(address)
        return self

    async def handle_async_request(self, request: Any) -> Any:
        await request.aread()
        self.requests.append(request)
        status = self.statuses[len(self.requests) - 1]
        if not status:
            raise httpx2.ConnectError("gone")
        return httpx2.Response(status, headers={"location": "http://127.0.0.1/"})


def deliver_test_event(transport: FakeTransport, tries: int) -> bool:
    return asyncio.run(
        deliver_webhook_event(
            f"https://{PUBLIC}/hook", SECRET, {"type": "job.completed"},
            pauses_s=(0.0,) * (tries - 1), transport=transport.for_address,
        )
    )  # fmt: skip


def test_an_event_is_signed_so_that_its_reader_can_verify_it() -> None:
    transport = FakeTransport([204])
    assert deliver_test_event(transport, 1)
    (request,) = transport.requests
    event = Webhook(SECRET).verify(request.content, dict(request.headers))
    assert event == {"type": "job.completed"} == json.loads(request.content)
    assert transport.addresses == [PUBLIC]


def test_it_is_sent_again_with_the_same_id_until_it_is_taken() -> None:
    transport = FakeTransport([500, 0, 200])
    assert deliver_test_event(transport, 4)
    assert len({r.headers["webhook-id"] for r in transport.requests}) == 1
    assert len(transport.requests) == 3


def test_redirects_are_not_followed_and_failure_is_told() -> None:
    transport = FakeTransport([302, 307])
    assert not deliver_test_event(transport, 2)
    assert len(transport.requests) == 2


@pytest.mark.parametrize(
    "url",
    [f"http://{PUBLIC}/\x01", f"http://{PUBLIC}\\@127.0.0.1/", "http://[::1", "http://\u2488"],
)
def test_addresses_that_parsers_differ_over_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="webhook_url"):
        resolve_public_address(url)


async def _deliver_to_server(
    url_host: str, answer: bytes, *, endless: bool = False
) -> tuple[bool, bytes]:
    """Deliver to a server of this test: whether that succeeded, and what the server read."""
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            while endless:
                writer.write(b"x" * 65536)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        is_delivered = await deliver_webhook_event(
            f"http://{url_host}:{port}/hook", SECRET, {"type": "job.completed"},
            pauses_s=(), transport=lambda address: PinnedTransport("127.0.0.1"),
        )  # fmt: skip
    return is_delivered, bytes(received)


@pytest.mark.parametrize("host", ["hooks.example", "bücher.example"])
def test_the_connection_goes_to_the_checked_address_and_names_the_host(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address_infos, resolve, resolved_names = (
        [(2, 1, 6, "", (PUBLIC, 80))],
        socket.getaddrinfo,
        list[str](),
    )

    def getaddrinfo(name: Any, *rest: Any, **more: Any) -> Any:
        if str(name).endswith(".example"):
            resolved_names.append(name)
            return address_infos
        return resolve(name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    is_delivered, received = asyncio.run(
        _deliver_to_server(host, b"HTTP/1.1 204 No Content\r\n\r\n")
    )
    assert is_delivered
    name = host.encode("idna").decode()
    assert f"host: {name}:" in received.decode().lower()
    # Looked up once, by the check: a name that means another address a moment later is no way in.
    assert resolved_names == [name]


def test_an_answer_without_end_is_not_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n"
    is_delivered, _ = asyncio.run(_deliver_to_server(PUBLIC, head, endless=True))
    assert is_delivered


@pytest.mark.parametrize("secret", ["whsec_", "whsec_x", "whsec_!"])
def test_a_secret_that_is_none_is_refused_by_its_variable(secret: str) -> None:
    with pytest.raises(ConfigError, match="DREAMBOOTH_WEBHOOK_SECRET"):
        check_webhook_secret(secret, "DREAMBOOTH_WEBHOOK_SECRET")
    assert check_webhook_secret(SECRET, "X") == SECRET
