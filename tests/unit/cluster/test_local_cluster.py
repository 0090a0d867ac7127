import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import namespaces
from cluster.local_cluster import LocalCluster
from cluster.namespaces import Host, command_in_host
from dreambooth_ray.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = {
        "network": {"bridge": "db-abc", "prefix": "10.213.9"},
        "hosts": [
            {"name": n, "namespace": f"db-abc-{n}", "address": a, "pid": 2**30, "ticks": 1}
            for n, a in (("head", "10.213.9.10"), ("host-11", "10.213.9.11"))
        ],
        "secret": "s3cret",
        "next": 12,
        "cpus": 1,
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "token").write_text("t0ken")
    return tmp_path


def test_a_folder_is_the_whole_state(folder: Path) -> None:
    cluster = LocalCluster(folder)
    assert cluster.address == "10.213.9.10:6379"
    assert cluster.dashboard_url == "http://10.213.9.10:8265"
    assert [h.name for h in cluster.workers] == ["host-11"]
    assert not cluster.host("head").is_alive


def test_environment_carries_the_token_and_nothing_foreign(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    environment = LocalCluster(folder).environment
    assert "RAY_ADDRESS" not in environment
    assert "AWS_ENDPOINT_URL" not in environment
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"] == "t0ken"


def test_unknown_host_names_those_there_are(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no host 'host-99'.*head, host-11"):
        LocalCluster(folder).host("host-99")


def test_the_head_is_not_replaced(folder: Path) -> None:
    with pytest.raises(ConfigError, match="head can't be replaced"):
        LocalCluster(folder).replace("head")


def test_a_host_sees_a_checkout_below_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(namespaces.sys, "prefix", "/tmp/checkout/.venv")
    monkeypatch.setenv("PYTHONPATH", "/opt/code:/tmp/code")
    shared = namespaces.list_required_tmp_folders()
    assert {Path("/tmp/checkout/.venv"), Path("/tmp/code")} <= set(shared)
    assert Path("/opt/code") not in shared


def test_no_cluster_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dreambooth cluster up"):
        LocalCluster(tmp_path)


def test_a_dead_host_is_not_entered() -> None:
    with pytest.raises(ConfigError, match="host gone does not run"):
        command_in_host(Host("gone", "n", "10.213.9.20", 2**30, 1), ["true"])


def test_hosts_need_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="need root"):
        LocalCluster.up(tmp_path / "new", 2)
    assert not (tmp_path / "new").exists()


def test_networks_that_are_made_at_once_get_addresses_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[str] = []
    second_looks = threading.Event()
    num_looks = itertools.count()

    def read_output(*words: str) -> str:
        addresses = json.dumps([{"local": address} for address in taken])
        if next(num_looks) == 0:
            second_looks.wait(0.3)  # as long as the other could look, too
        else:
            second_looks.set()
        return addresses

    def run_command(*words: str) -> None:
        if words[:3] == ("ip", "address", "add"):
            taken.append(words[3].removesuffix("/24"))

    monkeypatch.setattr(namespaces, "_LOCK_FILE", tmp_path / "lock")
    monkeypatch.setattr(namespaces, "_read_output", read_output)
    monkeypatch.setattr(namespaces, "_run_command", run_command)
    with ThreadPoolExecutor(2) as pool:
        networks = list(pool.map(namespaces.HostNetwork.create, ("one", "two")))
    assert {network.prefix for network in networks} == {"10.213.1", "10.213.2"}
