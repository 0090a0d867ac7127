"""An HTTP proxy on loopback between a client of an object store and the store.

It forwards each request and, where a rule says so, drops the answer after the request was carried
out: the client sees a closed connection and does not know. It counts requests by kind.
"""

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Rule = Callable[["Request"], bool]


@dataclass(frozen=True)
class Request:
    """A request as it came. is_conditional: carried out only if the name is free."""

    method: str
    path: str
    is_conditional: bool


@dataclass
class FaultProxy:
    """Listens on loopback from construction to `close`.

    drops_answer: tells of which requests the answer is lost; asked once for each request
    """

    target: str  # host:port
    drops_answer: Rule = lambda _: False
    requests: list[Request] = field(default_factory=list)
    dropped: list[Request] = field(default_factory=list)

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
        return Counter(request.method for request in self.requests)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def is_lost(self, request: Request) -> bool:
        """Note a request; whether its answer is to be dropped."""
        with self._lock:
            self.requests.append(request)
            if not self.drops_answer(request):
                return False
            self.dropped.append(request)
            return True


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
        body = self.rfile.read(size) if size else None
        request = Request(self.command, self.path, self.headers.get("If-None-Match") == "*")
        is_lost = self.owner.is_lost(request)
        connection = http.client.HTTPConnection(self.owner.target, timeout=60)
        try:
            # Its Host header is part of what is signed, so it stays as the client wrote it.
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if is_lost:
            self.close_connection = True
            return
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: its requests are in `requests`."""
