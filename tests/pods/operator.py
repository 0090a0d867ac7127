"""What controllers of Kubernetes and KubeRay do with rendered resources, as far as tests need it.

A pod that ends is replaced by one with a new name, as KubeRay does where Ray's autoscaler v2
is on (restartPolicy is then Never). No time is counted: probes decide readiness alone, liveness
probes are asked for by tests.
"""

import itertools
import secrets
import string
from typing import Any

import requests
import yaml

from tests.pods.kuberay import (
    Cluster,
    make_cluster,
    make_head,
    make_services,
    make_submitter,
    make_worker,
)
from tests.pods.manifest import Tree
from tests.pods.pod import Pod
from tests.pods.site import Site
from tests.waiting import wait_until

# Of a machine that does much else.
_READY_S = 1500
# Each look at a pod starts processes in it.
_LOOK_S = 2.0


def make_suffix() -> str:
    """Five letters, as Kubernetes puts behind names."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(5))


def start_template(site: Site, name: str, resource: Tree) -> Pod:
    """Start one pod of a StatefulSet or a Job."""
    template = resource["spec"]["template"]
    pod = site.add_pod(name, template["metadata"]["labels"], template["spec"])
    pod.start()
    return pod


class RayOperator:
    """One RayCluster that is kept running. resource: RayCluster, RayJob or RayService"""

    def __init__(self, site: Site, resource: Tree) -> None:
        self.site, self.resource = site, resource
        self.cluster: Cluster = make_cluster(resource, make_suffix())
        self.token = secrets.token_hex(16)
        site.add_secret(self.cluster.name[-50:], {"auth_token": self.token})
        site.services += make_services(self.cluster)
        self.head: Pod | None = None
        groups = self.cluster.spec["workerGroupSpecs"]
        self._slots = [g for g in groups for _ in range(g.get("replicas", 1))]
        self.workers: list[Pod | None] = [None for _ in self._slots]

    def reconcile(self) -> None:
        """Start what is not there, replace what has ended, and tell pods the names there are.

        Workers come once the head is ready. KubeRay makes them with it, and they ask for it every
        five seconds, each time by a Python with Ray: on a test's two cores the head then fails.
        """
        if self.head is None or self.head.has_ended:
            self._remove(self.head)
            labels, spec = make_head(self.cluster)
            self.head = self._start(f"{self.cluster.name}-head", labels, spec)
        is_head_ready = self.head.is_ready()
        for place, worker in enumerate(self.workers):
            if worker is not None and worker.has_ended:
                self._remove(worker)
                self.workers[place] = None
            if self.workers[place] is None and is_head_ready:
                group = self._slots[place]
                labels, spec = make_worker(self.cluster, group)
                name = f"{self.cluster.name}-{group['groupName']}-worker"
                self.workers[place] = self._start(name, labels, spec)
        for pod in self.pods:
            pod.start()
        self.site.write_hosts()

    def _start(self, prefix: str, labels: dict[str, str], spec: Tree) -> Pod:
        pod = self.site.add_pod(f"{prefix}-{make_suffix()}", labels, spec)
        pod.start()
        return pod

    @staticmethod
    def _remove(pod: Pod | None) -> None:
        if pod is not None:
            pod.kill()

    @property
    def pods(self) -> list[Pod]:
        """Head first, then workers."""
        return [pod for pod in (self.head, *self.workers) if pod is not None]

    def wait_until_ready(self) -> None:
        """Until every pod is ready by its own probe."""

        def check() -> bool:
            self.reconcile()
            return None not in self.workers and all(pod.is_ready() for pod in self.pods)

        try:
            wait_until(check, _READY_S, _LOOK_S)
        except AssertionError as error:
            logs = "\n".join(f"--- {pod.name}\n{pod.log[-3000:]}" for pod in self.pods)
            raise AssertionError(f"{self.cluster.name} is not ready\n{logs}") from error

    def ask(self, method: str, path: str, port: int = 8265, **arguments: Any) -> requests.Response:
        """A request to the head's dashboard with the cluster's token."""
        assert self.head is not None
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"http://{self.head.address}:{port}{path}"
        return requests.request(method, url, headers=headers, timeout=30, **arguments)

    def stop(self) -> None:
        """Remove every pod, as KubeRay does when a job is done."""
        for pod in self.pods:
            pod.kill()
        self.head, self.workers = None, [None for _ in self._slots]


class JobOperator(RayOperator):
    """A RayJob: its cluster, and a submitter that is tried again."""

    def __init__(self, site: Site, resource: Tree) -> None:
        super().__init__(site, resource)
        self.job_id = f"{self.cluster.owner}-{make_suffix()}"
        self._attempts = itertools.count(1)
        self._tries_left = 1 + resource["spec"]["submitterConfig"]["backoffLimit"]
        self.submitters: list[Pod] = []

    def submit(self) -> None:
        """Start a submitter; the job has begun when it prints."""
        assert self._tries_left > 0, self.submitters[-1].log
        self._tries_left -= 1
        labels, spec = make_submitter(self.resource, self.cluster, self.job_id)
        self.submitters.append(
            self._start(f"{self.cluster.owner}-{next(self._attempts)}", labels, spec)
        )

    def is_done(self) -> bool:
        """Whether a submitter has ended well; one that has ended otherwise is tried again."""
        self.reconcile()
        submitter = self.submitters[-1]
        code = submitter.container.exit_code if submitter.container else None
        if code is None:
            return False
        if code:
            submitter.kill()
            self.submit()
        return code == 0

    def state(self) -> str:
        """Ray's word for the job, by which KubeRay decides: a submitter ends well either way."""
        return str(self.ask("GET", f"/api/jobs/{self.job_id}").json()["status"])

    @property
    def log(self) -> str:
        """What all submitters have printed."""
        return "\n".join(submitter.log for submitter in self.submitters)


class ServiceOperator(RayOperator):
    """A RayService: its cluster, and the applications that the head is told to run."""

    def deploy(self) -> None:
        """Tell the head what to serve, as KubeRay does once the head answers."""
        config = yaml.safe_load(self.resource["spec"]["serveConfigV2"])

        def is_taken() -> bool:
            self.reconcile()
            try:
                return bool(self.ask("PUT", "/api/serve/applications/", json=config).ok)
            except requests.RequestException:
                return False

        wait_until(is_taken, _READY_S, _LOOK_S)

    def application_state(self) -> str:
        """Serve's word for the application; empty while the head does not answer."""
        self.reconcile()
        try:
            answer = self.ask("GET", "/api/serve/applications/")
        except requests.RequestException:
            return ""
        applications = answer.json().get("applications", {}) if answer.ok else {}
        return str(next((a["status"] for a in applications.values()), ""))
