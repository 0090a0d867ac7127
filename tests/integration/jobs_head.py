"""A real head of Ray with its Jobs API, on this machine, as a cluster that is registered."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.integration.conftest import kill_tree

_MOST_STARTS = 5


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def jobs_head(
    folder: Path, ray_folder: str, num_cpus: int = 0, autoscaling: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, str]]:
    """A head for the length of the block; yields the address of its Jobs API and its token.

    ray_folder: for Ray's own files; names of sockets may not be long
    autoscaling: configuration of Ray's autoscaler, whose hosts are raylets of this machine
    """
    num_starts = 1
    token, port, gcs = secrets.token_hex(32), free_port(), free_port()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--num-cpus={num_cpus}", f"--port={gcs}", f"--dashboard-port={port}",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={free_port()}", "--disable-usage-stats",
    ]  # fmt: skip
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": ray_folder,
    }  # fmt: skip
    if autoscaling is not None:
        file = folder / "autoscaling.json"
        provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{gcs}"}
        file.write_text(json.dumps({**autoscaling, "provider": provider}))
        command.append(f"--autoscaling-config={file}")
        environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    address, log = f"http://127.0.0.1:{port}", folder / "head.log"
    started = _start(command, environment, log)
    try:
        while not _answers(address, token):
            if started.poll() is not None:
                # Its parts wait half a minute for each other, which a busy machine may take.
                num_starts += 1
                assert num_starts < _MOST_STARTS, log.read_text()[-2000:]
                started = _start(command, environment, log)
            time.sleep(0.2)  # the interval of a poll
        yield address, token
    finally:
        kill_tree(started)


def _start(
    command: list[str], environment: Mapping[str, str], log: Path
) -> "subprocess.Popen[str]":
    with log.open("a") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, text=True, env=os.environ | environment
        )


def _answers(address: str, token: str) -> bool:
    """Whether the head has a host."""
    headers = {"Authorization": f"Bearer {token}"}
    try:
        answer = requests.get(f"{address}/nodes?view=summary", headers=headers, timeout=5)
        return bool(answer.json()["data"]["summary"])
    except (requests.RequestException, KeyError, ValueError):
        return False
