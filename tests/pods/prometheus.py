"""Debian's Prometheus over the metrics of pods, asked as Grafana asks it."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import yaml

from tests.waiting import wait_until


@contextlib.contextmanager
def run_prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], labels: Mapping[str, str]
) -> Iterator[str]:
    """Its address. targets: host:port by the name of a job; labels: what relabelling would add"""
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(hosts), "labels": dict(labels)}]}
            for job, hosts in targets.items()
        ],
    }
    folder.mkdir(parents=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml",
             f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: is_ready(address), 60)
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def is_ready(address: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://{address}/-/ready", timeout=5).ok
    return False


def query(address: str, expression: str) -> list[Any]:
    """The series that an expression has now. Fails with Prometheus' words for one that is none."""
    answer = requests.get(f"{address}/api/v1/query", params={"query": expression}, timeout=30)
    assert answer.ok, f"{expression}: {answer.text}"
    return list(answer.json()["data"]["result"])
