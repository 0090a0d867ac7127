"""A gateway with a real replica at a port of its own, in this process."""

import socket
import threading
from types import TracebackType

import uvicorn

from dreambooth_ray.config.serving import ServeConfig
from serve.deployment import build_app_state
from serve.gateway import create_app
from serve.replica import Replica
from tests.unit.serve.conftest import Handle


class Site(threading.Thread):
    """`with Site(config, replica) as site:` serves at site.address."""

    def __init__(self, config: ServeConfig, replica: Replica) -> None:
        super().__init__(daemon=True)
        app = create_app(build_app_state(config, {"Replica": Handle(replica)}))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))

    def run(self) -> None:
        self._server.run(sockets=[self._listener])

    def __enter__(self) -> "Site":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self.join(30)
