"""An HTTP proxy on loopback between a client of an object store and the store.

It forwards each request and counts it by kind. Where a rule says so it goes wrong: the answer is
lost after the request was carried out, the request never arrives, the store has no time, the
connection is cut in the middle of a body.
"""

import http.client
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args
from urllib.parse import parse_qs, unquote, urlsplit

# What a network and a store do to those who use them.
Outage = Literal[
    "lose_answer", "lose_request", "error_500", "error_503", "slow_down", "delay",
    "cut_answer", "cut_request",
]  # fmt: skip
# What a store does to those who may not.
Denial = Literal["access_denied", "expired_token"]
Fault = Outage | Denial
OUTAGES: tuple[Outage, ...] = get_args(Outage)
# Status, code and words of an answer that the proxy gives itself.
_REFUSALS: dict[str, tuple[int, str, str]] = {
    "error_500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "error_503": (503, "ServiceUnavailable", "Service is unable to handle request."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "access_denied": (403, "AccessDenied", "Access Denied"),
    "expired_token": (403, "ExpiredToken", "The provided token has expired."),
}
_DELAY_S = 0.3
# What a key is in the layout of a storage, the first that matches.
_LAYOUT: dict[str, re.Pattern[str]] = {
    "lease": re.compile(r"/leases(/|$)|/lease-\d+\.json$"),
    "stop": re.compile(r"/stop/?$"),
    "notice": re.compile(r"/notices(/|$)"),
    "metrics": re.compile(r"/metrics[^/]*\.jsonl$"),
    "evaluation": re.compile(r"/evaluations(/|$)|/verdict[^/]*\.json$"),
    "manifest": re.compile(r"/manifest\.json$"),
    "pointer": re.compile(r"/checkpoints/[^/]*\.json$|/chunk-\d+\.json$|/photographs/[^/]*\.json$"),
    "checkpoints": re.compile(r"/checkpoints/?$"),
    "job": re.compile(r"(^|/)serve/jobs(/|$)"),
    "catalog": re.compile(r"(^|/)catalog(_versions)?(/|$)|/catalog_complete\.json$"),
    "data": re.compile(""),
}
Rule = Callable[["Request"], bool]


@dataclass(frozen=True)
class Request:
    """A request as it came. is_conditional: carried out only if the name is free."""

    method: str
    path: str  # with its query
    is_conditional: bool = False
    num_bytes: int = 0  # of its body

    @property
    def operation(self) -> str:
        """The method; LIST for a look at several keys."""
        is_list = self.method == "GET" and "list-type=" in urlsplit(self.path).query
        return "LIST" if is_list else self.method

    @property
    def key(self) -> str:
        """The key without its bucket; of a LIST its prefix."""
        parts = urlsplit(self.path)
        if self.operation == "LIST":
            return "".join(parse_qs(parts.query).get("prefix", [""]))
        return unquote(parts.path).lstrip("/").partition("/")[2]

    @property
    def part(self) -> str:
        """What it is about: lease, stop, notice, metrics, pointer, data and their like."""
        return next(name for name, pattern in _LAYOUT.items() if pattern.search(self.key))

    @property
    def kind(self) -> str:
        """Operation and part in one word, such as `GET pointer`."""
        return f"{self.operation} {self.part}"


class FaultSchedule:
    """One fault in each `one_in` requests, the place and the kind by a seed. Not thread-safe."""

    def __init__(self, seed: int, one_in: int = 20, faults: tuple[Fault, ...] = OUTAGES) -> None:
        self._random, self._one_in, self._faults = random.Random(seed), one_in, faults
        self._num_seen = 0
        self._place = self._random.randrange(one_in)

    def __call__(self, request: Request) -> Fault | None:
        """The fault of the next request, if any."""
        place, self._num_seen = self._num_seen % self._one_in, self._num_seen + 1
        fault = self._random.choice(self._faults) if place == self._place else None
        if place == self._one_in - 1:
            self._place = self._random.randrange(self._one_in)
        return fault


@dataclass
class FaultProxy:
    """Listens on loopback from construction to `close`.

    drops_answer: tells of which requests the answer is lost; asked once for each request
    schedule: the fault of a request where drops_answer says no; asked once for each of the others
    """

    target: str  # host:port
    drops_answer: Rule = lambda _: False
    schedule: Callable[[Request], Fault | None] = lambda _: None
    requests: list[Request] = field(default_factory=list)
    dropped: list[Request] = field(default_factory=list)
    faults: list[tuple[Fault, Request]] = field(default_factory=list)
    num_bytes_answered: int = 0

    def __post_init__(self) -> None:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="proxy", daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def counts(self) -> Counter[str]:
        """Requests by method."""
        with self._lock:
            return Counter(request.method for request in self.requests)

    @property
    def kinds(self) -> Counter[str]:
        """Requests by kind."""
        with self._lock:
            return Counter(request.kind for request in self.requests)

    def forget(self) -> None:
        """Count from nothing."""
        with self._lock:
            self.requests.clear()
            self.num_bytes_answered = 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def choose_fault(self, request: Request) -> Fault | None:
        """Note a request; what is to go wrong with it."""
        with self._lock:
            self.requests.append(request)
            if self.drops_answer(request):
                self.dropped.append(request)
                return "lose_answer"
            fault = self.schedule(request)
            if fault is not None:
                self.faults.append((fault, request))
            return fault

    def note_answer(self, num_bytes: int) -> None:
        """Count the bytes of an answer's body."""
        with self._lock:
            self.num_bytes_answered += num_bytes


def once_each(matches: Rule) -> Rule:
    """The first answer to every request of one path that matches is lost, later ones are not."""
    lost_paths: set[str] = set()

    def rule(request: Request) -> bool:
        if request.path in lost_paths or not matches(request):
            return False
        lost_paths.add(request.path)
        return True

    return rule


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size) if size else b""
        is_conditional = self.headers.get("If-None-Match") == "*"
        fault = self.owner.choose_fault(Request(self.command, self.path, is_conditional, size))
        if fault == "delay":
            time.sleep(_DELAY_S)  # the fault itself
        elif fault in _REFUSALS:
            self._refuse(*_REFUSALS[fault])
            return
        elif fault in ("lose_request", "cut_request"):
            if fault == "cut_request":
                self._send_half(body)
            self.close_connection = True
            return
        try:
            response, content = self._ask(body)
        except OSError:  # the store is away
            self.close_connection = True
            return
        if fault == "lose_answer":
            self.close_connection = True
            return
        self._answer(response, content, is_cut=fault == "cut_answer")

    @property
    def _forwarded_headers(self) -> dict[str, str]:
        # Its Host header is part of what is signed, so it stays as the client wrote it.
        return {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect")}

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.owner.target, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, self._forwarded_headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def _send_half(self, body: bytes) -> None:
        """Let the store see the beginning of a request whose end never comes."""
        connection = http.client.HTTPConnection(self.owner.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True)
            for name, value in self._forwarded_headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(body[: len(body) // 2])
        finally:
            connection.close()

    def _answer(self, response: http.client.HTTPResponse, content: bytes, *, is_cut: bool) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        if is_cut and not content:
            # There is no middle of a body that is empty: the end of the headers is lost.
            self._headers_buffer: list[bytes] = []
            self.close_connection = True
            return
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
            self.owner.note_answer(len(content))
        self.close_connection = self.close_connection or is_cut

    def _refuse(self, status: int, code: str, text: str) -> None:
        """An answer as S3 gives it."""
        content = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: its requests are in `requests`."""
