"""A gateway in a process of its own, without Ray and replicas: what finds and lists subjects."""

import http.client
import subprocess
import sys
import time
from types import TracebackType

import psutil  # type: ignore[import-untyped]

_START_TIMEOUT_S = 120.0


class GatewayProcess:
    """Serves a storage for the length of its block. ready_s: from its start to its first answer."""

    def __init__(self, storage_uri: str) -> None:
        self._storage_uri, self.ready_s = storage_uri, 0.0

    def __enter__(self) -> "GatewayProcess":
        start_s = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gateway_process", self._storage_uri],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._process.stdout is None:
            raise RuntimeError("the gateway has no output")
        self._port = int(self._process.stdout.readline())
        while not self._answers():
            if time.monotonic() - start_s > _START_TIMEOUT_S:
                raise TimeoutError("the gateway does not answer")
            time.sleep(0.02)  # the interval of a poll
        self.ready_s = time.monotonic() - start_s
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/v1/models?limit=1")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def get(self, path: str, status: int) -> float:
        """Seconds of a request; raises RuntimeError for another status."""
        start_s = time.monotonic()
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        response_body = response.read()
        if response.status != status:
            raise RuntimeError(f"{path}: {response.status} {response_body[:200]!r}")
        return time.monotonic() - start_s

    @property
    def memory_bytes(self) -> int:
        """What it holds now."""
        return int(psutil.Process(self._process.pid).memory_info().rss)


def serve_gateway(storage_uri: str) -> None:
    """Print the port and answer at it until the process ends."""
    import socket  # noqa: PLC0415

    import uvicorn  # noqa: PLC0415

    from dreambooth_ray.config.serving import ServeConfig  # noqa: PLC0415
    from serve.deployment import build_app_state  # noqa: PLC0415
    from serve.gateway import create_app  # noqa: PLC0415

    config = ServeConfig.model_validate({"storage": {"uri": storage_uri}})
    app = create_app(build_app_state(config, {}))
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    serve_gateway(sys.argv[1])
