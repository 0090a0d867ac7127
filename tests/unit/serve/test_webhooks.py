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
from serve.webhooks import Pinned, check_secret, check_target, deliver

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
        check_target(url)


def test_a_public_address_is_taken() -> None:
    assert check_target(f"https://{PUBLIC}/hook") == PUBLIC


def test_a_name_with_one_address_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(2, 1, 6, "", (PUBLIC, 443)), (2, 1, 6, "", ("10.1.2.3", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: both)
    with pytest.raises(ConfigError, match="not public"):
        check_target("https://rebinding.example/")


class Answers(httpx2.AsyncBaseTransport):
    """Answers in turn, and remembers what was asked."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses, self.seen, self.addresses = statuses, list[httpx2.Request](), list[str]()

    def to(self, address: str) -> "Answers":
        self.addresses.append(address)
        return self

    async def handle_async_request(self, request: Any) -> Any:
        await request.aread()
        self.seen.append(request)
        status = self.statuses[len(self.seen) - 1]
        if not status:
            raise httpx2.ConnectError("gone")
        return httpx2.Response(status, headers={"location": "http://127.0.0.1/"})


def send(answers: Answers, tries: int) -> bool:
    return asyncio.run(
        deliver(
            f"https://{PUBLIC}/hook", SECRET, {"type": "job.completed"},
            pauses_s=(0.0,) * (tries - 1), transport=answers.to,
        )
    )  # fmt: skip


def test_an_event_is_signed_so_that_its_reader_can_verify_it() -> None:
    answers = Answers([204])
    assert send(answers, 1)
    (request,) = answers.seen
    event = Webhook(SECRET).verify(request.content, dict(request.headers))
    assert event == {"type": "job.completed"} == json.loads(request.content)
    assert answers.addresses == [PUBLIC]


def test_it_is_sent_again_with_the_same_id_until_it_is_taken() -> None:
    answers = Answers([500, 0, 200])
    assert send(answers, 4)
    assert len({r.headers["webhook-id"] for r in answers.seen}) == 1
    assert len(answers.seen) == 3


def test_redirects_are_not_followed_and_failure_is_told() -> None:
    answers = Answers([302, 307])
    assert not send(answers, 2)
    assert len(answers.seen) == 2


@pytest.mark.parametrize(
    "url",
    [f"http://{PUBLIC}/\x01", f"http://{PUBLIC}\\@127.0.0.1/", "http://[::1", "http://\u2488"],
)
def test_addresses_that_parsers_differ_over_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="webhook_url"):
        check_target(url)


async def _heard(url_host: str, answer: bytes, *, endless: bool = False) -> tuple[bool, bytes]:
    """Deliver to a server of this test in the place of a public address: told, and what it read."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            while endless:
                writer.write(b"x" * 65536)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        told = await deliver(
            f"http://{url_host}:{port}/hook", SECRET, {"type": "job.completed"},
            pauses_s=(), transport=lambda address: Pinned("127.0.0.1"),
        )  # fmt: skip
    return told, bytes(heard)


@pytest.mark.parametrize("host", ["hooks.example", "bücher.example"])
def test_the_connection_goes_to_the_checked_address_and_names_the_host(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, resolve, asked = [(2, 1, 6, "", (PUBLIC, 80))], socket.getaddrinfo, list[str]()

    def look(name: Any, *rest: Any, **more: Any) -> Any:
        if str(name).endswith(".example"):
            asked.append(name)
            return found
        return resolve(name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    told, heard = asyncio.run(_heard(host, b"HTTP/1.1 204 No Content\r\n\r\n"))
    assert told
    name = host.encode("idna").decode()
    assert f"host: {name}:" in heard.decode().lower()
    # Looked up once, by the check: a name that means another address a moment later is no way in.
    assert asked == [name]


def test_an_answer_without_end_is_not_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n"
    told, _ = asyncio.run(_heard(PUBLIC, head, endless=True))
    assert told


@pytest.mark.parametrize("secret", ["whsec_", "whsec_x", "whsec_!"])
def test_a_secret_that_is_none_is_refused_by_its_variable(secret: str) -> None:
    with pytest.raises(ConfigError, match="DREAMBOOTH_WEBHOOK_SECRET"):
        check_secret(secret, "DREAMBOOTH_WEBHOOK_SECRET")
    assert check_secret(SECRET, "X") == SECRET
