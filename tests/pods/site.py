"""Where pods of tests run: a network of their own, file systems of images, names, entries."""

import base64
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.namespaces import HostNetwork
from tests.pods.manifest import Service, Store, Tree
from tests.pods.pod import Pod

# Where in the network pods begin; the machine itself is the first address.
_FIRST_NUMBER = 10


class Site:
    """One namespace of Kubernetes, as far as pods see it. Use it as a context manager.

    images: root file systems by beginnings of image names
    """

    def __init__(self, folder: Path, tag: str, namespace: str, images: Mapping[str, Path]) -> None:
        self.folder, self.namespace, self._images = folder, namespace, images
        self.network = HostNetwork.create(tag)
        self.store = Store({}, {})
        self.services: list[Service] = []
        self.pods: list[Pod] = []
        self._next_number = _FIRST_NUMBER

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *error: object) -> None:
        for pod in list(self.pods):
            pod.kill()
        self.network.remove()
        shutil.rmtree(self.folder / "pods", ignore_errors=True)

    def add_entries(self, resources: Iterable[Tree]) -> None:
        """Take ConfigMaps, Secrets and Services from rendered manifests."""
        maps, secrets = dict(self.store.config_maps), dict(self.store.secrets)
        for resource in resources:
            name = resource["metadata"]["name"]
            if resource["kind"] == "ConfigMap":
                maps[name] = resource.get("data", {})
            if resource["kind"] == "Secret":
                secrets[name] = _decode(resource)
            if resource["kind"] == "Service":
                self.services.append(Service(name, resource["spec"]["selector"]))
        self.store = Store(maps, secrets)

    def add_secret(self, name: str, entries: Mapping[str, str]) -> None:
        """Take a Secret that a controller makes."""
        self.store = Store(self.store.config_maps, {**self.store.secrets, name: entries})

    def rootfs(self, image: str) -> Path:
        """The files of an image. Fails for one that nothing here stands for."""
        for beginning, folder in self._images.items():
            if image.startswith(beginning):
                return folder
        raise AssertionError(f"no files for the image {image}")

    def add_pod(self, name: str, labels: dict[str, str], spec: Tree) -> Pod:
        """A pod with the next address, not yet started."""
        pod = Pod(self, name, labels, spec, self._next_number)
        self._next_number += 1
        self.pods.append(pod)
        return pod

    def forget(self, pod: Pod) -> None:
        """A pod is gone: no name leads to it."""
        if pod in self.pods:
            self.pods.remove(pod)
            self.write_hosts()

    def write_hosts(self) -> None:
        """Tell every pod the addresses of all names; each keeps the file that it has mounted."""
        lines = ["127.0.0.1 localhost"]
        for service in self.services:
            behind = [pod for pod in self.pods if service.selects(pod.labels)]
            ready = behind if service.is_for_all else [p for p in behind if p.is_ready()]
            if ready:
                lines.append(f"{ready[0].address} {' '.join(self.names_of(service.name))}")
        for pod in self.pods:
            text = "\n".join([*lines, f"{pod.address} {pod.name}", ""])
            hosts = pod.folder / "hosts"
            if hosts.exists() and hosts.read_text() != text:
                hosts.write_text(text)

    def names_of(self, service: str) -> list[str]:
        """The names by which pods may call a service."""
        full = f"{service}.{self.namespace}.svc.cluster.local"
        parts = full.split(".")
        return [".".join(parts[:count]) for count in (1, 2, 3, 5)]

    @staticmethod
    def connects(address: str, port: int, timeout_s: float) -> bool:
        """Whether something listens there."""
        try:
            socket.create_connection((address, port), timeout_s).close()
        except OSError:
            return False
        return True


def _decode(secret: Tree) -> dict[str, str]:
    entries = {k: base64.b64decode(v).decode() for k, v in secret.get("data", {}).items()}
    return {**entries, **secret.get("stringData", {})}
