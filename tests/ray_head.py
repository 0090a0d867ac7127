"""A Ray head, as far as preflight asks, and a registry that has one image: both speak HTTP."""

import json
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

TOKEN = "right"
GIB = 2**30


class Head(BaseHTTPRequestHandler):
    """What it answers."""

    server: "Server"

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {})
        elif self.path.startswith("/nodes"):
            raylet = {
                "state": "ALIVE",
                "resourcesTotal": {"CPU": self.server.cpus, **self.server.gpus},
            }
            host = {
                "raylet": raylet,
                "mem": [self.server.memory, 0, 0, 0],
                "gpus": self.server.cards,
            }
            self._answer(200, {"data": {"summary": [host]}})
        elif self.path == "/api/version":
            self._answer(200, {"ray_version": self.server.ray})
        else:
            self._answer(200, {"data": {"pythonVersion": self.server.python}})

    def do_HEAD(self) -> None:
        versions = ("1", f"sha256:{'0' * 64}")
        known_paths = {f"/v2/dreambooth/manifests/{version}" for version in versions}
        self._answer(200 if self.path in known_paths else 404, None)

    def _answer(self, status: int, content: Any) -> None:
        self.send_response(status)
        self.end_headers()
        if content is not None:
            self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """What the cluster has: set an attribute to plant a fault."""

    ray = version("ray")
    python = platform.python_version()
    memory = 64 * GIB
    cpus = 4.0
    gpus: dict[str, float] = {}  # noqa: RUF012
    # As Ray's dashboard tells of them: MiB.
    cards: list[dict[str, int]] = []  # noqa: RUF012


@contextmanager
def ray_head() -> Iterator[Server]:
    """A head that answers for the length of the block."""
    server = Server(("127.0.0.1", 0), Head)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
