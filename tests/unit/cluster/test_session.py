import http.server
import json
import os
import platform
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated.gcs_service_pb2 import InternalKVGetReply
from ray.core.generated.gcs_service_pb2_grpc import (
    InternalKVGcsServiceServicer,
    add_InternalKVGcsServiceServicer_to_server,
)

from cluster import session
from cluster.session import check_cluster_is_reachable, ray_connection
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import ConfigError


@pytest.fixture
def ray_arguments(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray was started with."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "check_head", lambda address, timeout_s: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


def test_a_local_ray_is_one_of_its_own_whatever_else_runs_here(
    ray_arguments: list[dict[str, Any]],
) -> None:
    with ray_connection(ClusterConfig(), 3):
        pass
    # Without "local", ray.init joins a `ray start` of this machine and refuses num_cpus.
    assert ray_arguments[0]["address"] == "local"
    assert ray_arguments[0]["num_cpus"] >= 3


def test_inside_of_a_job_its_cluster_is_meant(
    ray_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with ray_connection(ClusterConfig(), 3):
            pass
    assert ray_arguments[0]["address"] == address
    assert "num_cpus" not in ray_arguments[0]


@pytest.mark.parametrize("address", ["local", "", " "])
def test_an_address_that_means_a_local_ray_starts_one(
    ray_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with ray_connection(ClusterConfig(), 3):
        pass
    assert ray_arguments[0]["address"] == "local"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Bound, so that nobody else takes it, and nobody listens."""
    with socket.socket() as bound_socket:
        bound_socket.bind(("127.0.0.1", 0))
        yield bound_socket.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_a_stale_address_is_named_with_where_it_came_from(
    form: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = form.format(closed_port)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError) as refused:
        ray_connection(ClusterConfig(), 1).__enter__()
    start = f"the environment's RAY_ADDRESS={address!r} can't be reached"
    assert str(refused.value).startswith(start)
    assert "unset the environment's RAY_ADDRESS" in str(refused.value)
    with pytest.raises(ConfigError, match=r"^cluster\.address='127"):
        ray_connection(ClusterConfig(address=f"127.0.0.1:{closed_port}"), 1).__enter__()


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "https://ray.example.com"])
def test_the_address_of_a_jobs_api_is_no_heads(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="Jobs API; give the head as host:6379"):
        check_cluster_is_reachable(ClusterConfig())


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:port", "ray://host"])
def test_what_is_no_address_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=.* is not of the form host:port"):
        check_cluster_is_reachable(ClusterConfig())


def test_auto_without_a_ray_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_local_address", lambda: None)
    with pytest.raises(ConfigError, match=r"cluster\.address='auto': no Ray was started on this"):
        check_cluster_is_reachable(ClusterConfig(address="auto"))


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_another_server_at_the_port_is_no_ray(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within seconds and without a line of Ray's own: a web server, say."""
    monkeypatch.setattr(session, "_ANSWER_TIMEOUT_S", 2.0)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = form.format(f"127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(ConfigError, match="what answers there is no Ray"):
            check_cluster_is_reachable(ClusterConfig(address=address))
    finally:
        server.shutdown()
        server.server_close()


class Head(InternalKVGcsServiceServicer):
    """A head with the versions it is given, that may want a token."""

    def __init__(self, metadata: dict[str, str], *, wants_token: bool = False) -> None:
        self._metadata, self._wants_token = metadata, wants_token

    def InternalKVGet(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's name
        if self._wants_token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return InternalKVGetReply(value=json.dumps(self._metadata).encode())


OURS = {"ray_version": ray.__version__, "python_version": platform.python_version()}


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (Head(OURS), ""),
        (Head(OURS | {"ray_version": "2.9.0"}), "another version.*2\\.9\\.0"),
        (Head(OURS | {"python_version": "3.9.1"}), "another version.*3\\.9\\.1"),
        (Head(OURS, wants_token=True), "refuses the token; set RAY_AUTH_MODE"),
    ],
)
def test_a_head_is_asked_for_its_versions_and_its_token(head: Head, words: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    add_InternalKVGcsServiceServicer_to_server(head, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    cluster = ClusterConfig(address=f"127.0.0.1:{port}")
    try:
        if not words:
            check_cluster_is_reachable(cluster)
            return
        with pytest.raises(ConfigError, match=f"cluster.address='127.*{words}"):
            check_cluster_is_reachable(cluster)
    finally:
        server.stop(None)


def test_gpus_that_this_machine_has_not_are_refused_by_name(
    ray_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ConfigError, match=r"cluster\.gpus=true: this machine has no GPU"):
        ray_connection(ClusterConfig(gpus=True), 3).__enter__()
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    with ray_connection(ClusterConfig(gpus=True), 3):
        pass


@pytest.mark.parametrize(
    ("overrides", "is_ahead"),
    [([], True), (["cluster.gpus=true"], False), (["prior.num_gpus=0.5"], False)],
)
def test_waiting_processes_import_ahead_unless_they_have_yet_to_be_told_their_gpus(
    monkeypatch: pytest.MonkeyPatch,
    ray_arguments: list[dict[str, Any]],
    overrides: list[str],
    is_ahead: bool,
) -> None:
    preloads: list[str | None] = []
    start = ray.init

    def record_and_start(**arguments: Any) -> None:
        preloads.append(os.environ.get("RAY_preload_python_modules"))  # noqa: SIM112
        start(**arguments)

    monkeypatch.setattr(ray, "init", record_and_start)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    config = load_config("toy-robot.yaml", overrides)
    for imports_ahead in (True, False):
        with session.session(config, imports_ahead=imports_ahead):
            pass
    assert preloads == ["cluster.waiting_process" if is_ahead else None, None]
