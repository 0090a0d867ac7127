"""A real head of Ray with its Jobs API, on this machine, as a cluster that is registered."""

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.conftest import kill_tree


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
    with (folder / "head.log").open("w") as log:
        started = subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env=os.environ | environment
        )
    try:
        yield f"http://127.0.0.1:{port}", token
    finally:
        kill_tree(started)
