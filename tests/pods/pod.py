"""One pod: a network namespace of its own, its volumes, and its containers by runc.

Of several containers the first alone runs: the others are sidecars of KubeRay's that need
Kubernetes' API. User, capabilities, filter of system calls, memory limit, volumes and probes are
those of its manifest.
"""

import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from tests.pods.container import Container
from tests.pods.manifest import Identity, Tree, expand, parse_quantity, read_environment
from tests.pods.oci import ContainerSpec, Mount
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.pods.site import Site


class Pod:
    """A pod from its start to its end. spec: of the pod, as KubeRay or a manifest has it"""

    def __init__(
        self, site: "Site", name: str, labels: dict[str, str], spec: Tree, number: int
    ) -> None:
        self.site, self.spec, self.labels = site, spec, labels
        self.folder = site.folder / "pods" / name
        self.folder.mkdir(parents=True)
        # Interfaces have short names: a namespace is named by its number.
        self.namespace, address = site.network.add_namespace(f"p{number}", number)
        self.identity = Identity(name, site.namespace, address, labels)
        self._mounted: list[Path] = []
        self._volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        self.container: Container | None = None
        self._waiting = [*spec.get("initContainers", []), spec["containers"][0]]
        self._has_failed = False

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def address(self) -> str:
        return self.identity.address

    def start(self) -> None:
        """Start the next container if the one before has ended: init containers one after the
        other, then the first container. As kubelet does, it waits for none of them.
        """
        while self._waiting and not self.has_ended:
            code = self.container.exit_code if self.container else 0
            if code != 0:
                self._has_failed = code is not None
                return
            self.container = self._run(self._waiting.pop(0))
            self.container.wait_for_start()

    @property
    def has_ended(self) -> bool:
        """Whether it has come to its end, well or not."""
        is_over = self.container is not None and self.container.exit_code is not None
        return self._has_failed or (not self._waiting and is_over)

    def _run(self, container: Tree) -> Container:
        security = {**self.spec.get("securityContext", {}), **container.get("securityContext", {})}
        assert security.get("capabilities") == {"drop": ["ALL"]}, container["name"]
        assert security["allowPrivilegeEscalation"] is False, container["name"]
        environment = read_environment(container, self.identity, self.site.store)
        resources = container.get("resources", {})
        limits = resources.get("limits", {})
        cpus = resources.get("requests", limits).get("cpu", "1")
        words = [*container.get("command", []), *container.get("args", [])]
        spec = ContainerSpec(
            rootfs=self.site.rootfs(container["image"]),
            command=[expand(word, environment) for word in words],
            environment=environment,
            hostname=self.name[:63],
            network_namespace=self.namespace,
            user=security["runAsUser"],
            group=security["runAsGroup"],
            directory="/home/ray" if security["runAsUser"] == 1000 else "/",
            mounts=[*self._site_mounts(), *self._make_mounts(container, security)],
            num_cpus=parse_quantity(cpus),
            memory_bytes=int(parse_quantity(limits["memory"])) if "memory" in limits else 0,
            has_read_only_root=security["readOnlyRootFilesystem"],
        )
        identity = f"{self.site.network.bridge}-{self.name}-{container['name']}"
        return Container(spec, self.folder / container["name"], identity)

    def _site_mounts(self) -> list[Mount]:
        """Names of services and pods, and no other names."""
        hosts, resolver = self.folder / "hosts", self.folder / "resolv.conf"
        hosts.touch()
        resolver.write_text("")
        self.site.write_hosts()
        return [Mount(hosts, "/etc/hosts", True), Mount(resolver, "/etc/resolv.conf", True)]

    def _make_mounts(self, container: Tree, security: Tree) -> list[Mount]:
        group = self.spec.get("securityContext", {}).get("fsGroup", security["runAsGroup"])
        mounts = []
        for mount in container.get("volumeMounts", []):
            source = self._make_volume(mount["name"], group)
            mounts.append(Mount(source, mount["mountPath"], bool(mount.get("readOnly"))))
        return mounts

    def _make_volume(self, name: str, group: int) -> Path:
        """The folder of a volume, made when it is first mounted."""
        folder = self.folder / "volumes" / name
        if folder.exists():
            return folder
        folder.mkdir(parents=True)
        volume = self._volumes.get(name, {"emptyDir": {}})  # a claim of a StatefulSet
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            size = int(parse_quantity(volume["emptyDir"]["sizeLimit"]))
            options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
            subprocess.run(["mount", *options], check=True)
            self._mounted.append(folder)
        for kind, entries in (("configMap", self.site.store.config_maps),
                              ("secret", self.site.store.secrets)):  # fmt: skip
            if kind in volume:
                source = volume[kind].get("name") or volume[kind]["secretName"]
                is_optional = bool(volume[kind].get("optional"))
                assert is_optional or source in entries, f"{self.name} waits for {kind} {source}"
                for key, text in entries.get(source, {}).items():
                    (folder / key).write_text(text)
        # As kubelet does for fsGroup: of the group, and files made in it too.
        os.chown(folder, -1, group)
        folder.chmod(0o2777)
        return folder

    def is_ready(self) -> bool:
        """Whether it runs and its readiness probe, if it has one, succeeds."""
        return self.is_running and self._probe("readinessProbe")

    def is_live(self) -> bool:
        """Whether it runs and its liveness probe, if it has one, succeeds."""
        return self.is_running and self._probe("livenessProbe")

    @property
    def is_running(self) -> bool:
        """Whether its first container runs: none of those for its beginning."""
        is_there = self.container is not None and self.container.exit_code is None
        return is_there and not self._waiting

    @property
    def log(self) -> str:
        """What its first container has printed, or one for its beginning while those run."""
        return self.container.log if self.container else ""

    def _probe(self, kind: str) -> bool:
        container = self.spec["containers"][0]
        probe = container.get(kind)
        if probe is None:
            return True
        timeout_s = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            return self.execute(*probe["exec"]["command"], timeout_s=timeout_s).returncode == 0
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
        action = probe.get("httpGet") or probe["tcpSocket"]
        port = ports.get(action["port"], action["port"])
        url = f"http://{self.address}:{port}{action.get('path', '')}"
        if "tcpSocket" in probe:
            return self.site.connects(self.address, port, timeout_s)
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:
                return bool(200 <= answer.status < 400)
        except OSError:
            return False

    def execute(self, *command: str, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        """A command in the first container, as `kubectl exec` runs it."""
        assert self.container is not None, self.name
        return self.container.execute(*command, timeout_s=timeout_s)

    def stop(self) -> int:
        """As a node that is drained: preStop, SIGTERM, SIGKILL after the grace; the exit code."""
        assert self.container is not None, self.name
        grace_s = self.spec.get("terminationGracePeriodSeconds", 30)
        hook = self.spec["containers"][0].get("lifecycle", {}).get("preStop")
        if hook:
            self.execute(*hook["exec"]["command"], timeout_s=grace_s)
        self.container.signal(signal.SIGTERM)
        try:
            code = self.container.wait(grace_s)
        except AssertionError:
            code = 137
        self.kill()
        return code

    def delete(self) -> None:
        """As a pod that is deleted without grace: its connections are closed by the kernel."""
        if self.container:
            self.container.kill()
        self.kill()

    def kill(self) -> None:
        """As a node that loses power: its cable first, so that nothing says goodbye."""
        self._has_failed = True
        self.site.network.remove_namespace(self.namespace, self.address)
        if self.container:
            self.container.kill()
        for folder in self._mounted:
            subprocess.run(["umount", "--lazy", folder], check=False)
        self._mounted.clear()
        self.site.forget(self)

    def wait_until_ready(self, timeout_s: float = 900) -> None:
        """Fails with its log if it ends first, or is not ready in time."""

        def check() -> bool:
            self.start()
            assert not self.has_ended, f"{self.name} ended:\n{self.log}"
            return self.is_ready()

        try:
            wait_until(check, timeout_s, 1.0)
        except AssertionError as error:
            raise AssertionError(f"{self.name} is not ready:\n{self.log}") from error
