"""Identities of pods at clouds: what policies let them reach, and an agent that gives keys."""

import ipaddress
import json
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from dreambooth_ray.storage.store import Store
from tests.integration.seaweed import Seaweed
from tests.integration.test_k8s import BIN, ROOT, Resource, resources
from tests.object_store import pointed_at

EKS_AGENT, NODE_METADATA, GKE_METADATA = "169.254.170.23", "169.254.169.254", "169.254.169.252"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def render(folder: Path, *parts: str) -> list[Resource]:
    """What a kustomization of these bases and components renders."""
    places = {part: os.path.relpath(ROOT / "k8s" / part, folder) for part in parts}
    kustomization = {
        "namespace": "dreambooth",
        "resources": [path for part, path in places.items() if part.startswith("base/")],
        "components": [path for part, path in places.items() if part.startswith("components/")],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    text = subprocess.run(
        [BIN / "kubectl", "kustomize", folder], capture_output=True, text=True, check=True
    ).stdout
    return list(yaml.safe_load_all(text))


def reaches(manifests: list[Resource], address: str, port: int) -> bool:
    """Whether a policy lets our pods go to an address outside of the cluster."""
    rules = [
        rule
        for r in manifests
        if r["kind"] == "NetworkPolicy" and "Egress" in r["spec"]["policyTypes"]
        for rule in r["spec"].get("egress", [])
    ]
    return any(
        port in {entry["port"] for entry in rule.get("ports", [{"port": port}])}
        and ("to" not in rule or any(_holds(peer, address) for peer in rule["to"]))
        for rule in rules
    )


def _holds(peer: Resource, address: str) -> bool:
    block = peer.get("ipBlock")
    return bool(block) and ipaddress.ip_address(address) in ipaddress.ip_network(block["cidr"])


@pytest.mark.parametrize("overlay", ["train-gpu", "serve-gpu", "shared-gpu"])
def test_pods_reach_the_agent_and_not_the_nodes_own_metadata(overlay: str) -> None:
    manifests = resources(overlay)
    assert reaches(manifests, EKS_AGENT, 80)
    assert not reaches(manifests, NODE_METADATA, 80)
    accounts = {
        r["metadata"]["name"]: r["metadata"].get("annotations", {})
        for r in manifests
        if r["kind"] == "ServiceAccount"
    }
    with_role = {name for name, notes in accounts.items() if "eks.amazonaws.com/role-arn" in notes}
    assert with_role == {"dreambooth-head", "dreambooth-worker"}


def test_pods_reach_the_metadata_server_of_gke(tmp_path: Path) -> None:
    assert not reaches(render(tmp_path, "base/platform"), GKE_METADATA, 988)
    manifests = render(tmp_path, "base/platform", "components/gke-identity")
    assert reaches(manifests, NODE_METADATA, 80)
    assert reaches(manifests, GKE_METADATA, 988)
    assert not reaches(manifests, EKS_AGENT, 80)


class Agent(BaseHTTPRequestHandler):
    """As EKS Pod Identity's: keys for whoever shows the token of a pod."""

    keys: dict[str, str]
    token: str

    def do_GET(self) -> None:
        is_known = self.headers.get("Authorization") == self.token
        body = json.dumps({**self.keys, "Token": "", "Expiration": "2126-01-01T00:00:00Z"})
        self.send_response(200 if is_known else 403)
        self.end_headers()
        self.wfile.write(body.encode() if is_known else b"")

    def log_message(self, *arguments: object) -> None:
        """Nothing: a test's output is not for it."""


@pytest.fixture
def agent(seaweed: Seaweed) -> Iterator[str]:
    """URL of an agent whose keys are those of SeaweedFS's writer."""
    keys = {"AccessKeyId": seaweed.writer_key, "SecretAccessKey": seaweed.writer_secret}
    handler = type("OwnAgent", (Agent,), {"keys": keys, "token": uuid.uuid4().hex})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/credentials {handler.token}"
    server.shutdown()
    server.server_close()


def test_storage_takes_the_keys_of_the_pods_identity(
    seaweed: Seaweed, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variables that EKS puts into pods, without a key in the environment."""
    uri = f"{seaweed.make_bucket('identity')}/{uuid.uuid4().hex[:8]}"
    url, token = agent.split()
    (tmp_path / "token").write_text(token)
    environment = {k: v for k, v in seaweed.environment.items() if k not in KEYS}
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    environment |= {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": url,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
    }
    with pointed_at(environment):
        store = Store(uri)
        store.write("file", b"1")
        assert store.read("file") == b"1"
