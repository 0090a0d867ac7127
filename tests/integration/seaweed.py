"""A real S3 server on loopback: SeaweedFS, with keys of its own."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import fsspec

from tests.fault_proxy import FaultProxy, FaultSchedule

# A seed by which every 20th request of its clients goes wrong, as `pytest --faults` sets it.
FAULTS_VARIABLE = "SEAWEED_FAULTS"
_READY_S = 60


class Seaweed:
    """One server process; `start` after `kill` finds the data again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._process = folder, None  # type: ignore[var-annotated]
        self.key, self.secret = "admin" + secrets.token_hex(4), secrets.token_hex(16)
        self.reader_key, self.reader_secret = "reader", secrets.token_hex(16)
        self.writer_key, self.writer_secret = "writer", secrets.token_hex(16)
        self._ports = _free_ports()
        self._proxy: FaultProxy | None = None
        if seed := os.environ.get(FAULTS_VARIABLE):
            target = f"127.0.0.1:{self._ports['s3']}"
            self._proxy = FaultProxy(target, schedule=FaultSchedule(int(seed)))
        folder.mkdir(parents=True)
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            _identity("admin", self.key, self.secret, rights),
            # Who is no administrator makes no bucket by writing to it.
            _identity("writer", self.writer_key, self.writer_secret, rights[1:]),
            _identity("reader", self.reader_key, self.reader_secret, ["Read", "List"]),
        ]
        (folder / "keys.json").write_text(json.dumps({"identities": identities}))

    @property
    def endpoint(self) -> str:
        """The server's own, whatever lies before it."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def _client_endpoint(self) -> str:
        return self._proxy.endpoint if self._proxy else self.endpoint

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self._client_endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def options(self, key: str = "", secret: str = "") -> dict[str, object]:
        """fsspec options of these keys, the administrator's by default."""
        return {
            "key": key or self.key,
            "secret": secret or self.secret,
            "endpoint_url": self._client_endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def start(self) -> None:
        """Returns when the server answers as an object store."""
        weed = Path(sys.executable).with_name("weed")
        ports = self._ports
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                    f"-dir={self.folder}", f"-master.port={ports['master']}",
                    f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}", "-s3",
                    f"-s3.port={ports['s3']}", f"-s3.config={self.folder / 'keys.json'}",
                    "-master.volumeSizeLimitMB=64", "-volume.max=400",
                    # Of ports with one number for all servers of a machine: nothing here uses them.
                    "-s3.port.iceberg=0", "-s3.port.lance=0",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _READY_S
        while not self._answers():
            log_file = self.folder / "log"
            assert self._process.poll() is None, log_file.read_text()[-2000:]
            assert time.monotonic() < deadline, log_file.read_text()[-2000:]
            time.sleep(0.1)  # the interval of a poll

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.endpoint}/", timeout=2).close()
        except urllib.error.HTTPError:
            pass  # refused: it is there
        except OSError:
            return False
        with contextlib.suppress(Exception):
            self.make_bucket("probe")
            return True
        return False

    def make_bucket(self, name: str) -> str:
        """Its URI."""
        fs = fsspec.filesystem("s3", **self.options(), skip_instance_cache=True)
        with contextlib.suppress(FileExistsError):
            fs.call_s3("create_bucket", Bucket=name)
        fs.pipe_file(f"{name}/.there", b"")
        return f"s3://{name}"

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": key, "secretKey": secret}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _free_ports() -> dict[str, int]:
    """Of each server; its gRPC port is 10000 above and must be free too.

    Both lie below the ports that Linux gives to connections, which may take one at any moment.
    """
    found: dict[str, int] = {}
    while len(found) < 4:
        port = 20_000 + secrets.randbelow(2_000)
        if all(_is_free(p) for p in (port, port + 10_000)) and port not in found.values():
            found[("master", "volume", "filer", "s3")[len(found)]] = port
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
