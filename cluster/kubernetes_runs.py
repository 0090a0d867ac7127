"""Runs as RayJobs of KubeRay, by kubectl: submit, look at, stop, take up again.

How a RayJob stands is KubeRay's word (ray-operator/controllers/ray/rayjob_controller.go, 1.7): its
`jobDeploymentStatus`, and Ray's own `jobStatus` while it runs and after.
"""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import yaml

from cluster.kubectl import read_kubernetes_objects, run_kubectl
from cluster.ray_jobs import RunJob
from cluster.rayjob import (
    PART_OF,
    RECIPE,
    RUN_ID,
    RUN_URI,
    SUBMITTER,
    Resource,
    refuse_pod_settings,
    render_rayjob,
)
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CapacityError, ConfigError, StorageError
from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage.store import Store

# KubeRay's kind by its full name: others have a kind of this name, too.
_KIND = "rayjobs.ray.io"
_ACTIVE = ("pending", "running", "stopping")
_WAITING = ("", "Initializing", "Waiting", "Retrying")
# What KubeRay made for a job has gone before the next one of its name comes, its Job above all.
_ANEW = ("replace", "--force", "--cascade=foreground", "--timeout=4m", "--filename=-")
_SUSPEND = '{{"spec": {{"suspend": {}}}}}'


class KubernetesRuns:
    """The runs of one namespace that `dreambooth submit --k8s` has sent."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def runs(self) -> list[RunJob]:
        """Every run's RayJob, newest first. raises: CapacityError if nothing answers"""
        jobs = [
            _parse_run_job(r)
            for r in self._read_resources(_KIND, f"--selector={PART_OF}")
            if _is_run_rayjob(r)
        ]
        return sorted(jobs, key=lambda job: -job.started_ms)

    def get(self, run: str) -> RunJob:
        """The RayJob of a run id, or of its own name where two storages have one run id.

        raises: ConfigError naming the runs there are
        """
        jobs = self.runs()
        matching_jobs = [job for job in jobs if run in (job.run_id, job.submission_id)]
        if len(matching_jobs) == 1:
            return matching_jobs[0]
        if matching_jobs:
            rayjob_names = ", ".join(
                f"{job.submission_id} ({job.run_uri})" for job in matching_jobs
            )
            raise ConfigError(
                f"run id {run!r} is that of several; give the RayJob's name: {rayjob_names}"
            )
        run_ids = ", ".join(job.run_id for job in jobs[:8]) or "none"
        raise ConfigError(f"no run {run!r} in the namespace {self._namespace}; its runs: {run_ids}")

    def submit(self, config: Config, image: str) -> RunJob:
        """Make a run's RayJob, or make anew one that has ended; the same run is started once.

        A run that is under way, or has ended well, is given back as it is.
        raises: ConfigError for settings that pods can't use, or if the name is that of another run
        """
        refuse_pod_settings(config, image, self._namespace)
        kubernetes_manifests = render_rayjob(config, image, self._namespace)
        # As JSON: kubectl takes some words of YAML's as something else than Python does, n and y.
        manifests_json = "\n".join(json.dumps(resource) for resource in kubernetes_manifests)
        rayjob_name = kubernetes_manifests[1]["metadata"]["name"]
        existing_rayjobs = self._read_resources(_KIND, rayjob_name)
        if not existing_rayjobs:
            run_kubectl("apply", "--filename=-", text=manifests_json)
            return _parse_run_job(kubernetes_manifests[1])
        previous_job = _parse_run_job(existing_rayjobs[0])
        self._refuse_another_recipe(previous_job, kubernetes_manifests[0]["data"][RECIPE])
        if previous_job.state in _ACTIVE or _has_ended_well(previous_job):
            return previous_job
        run_kubectl(*_ANEW, text=manifests_json)
        return _parse_run_job(kubernetes_manifests[1])

    def _refuse_another_recipe(self, job: RunJob, recipe: str) -> None:
        stored_recipe = self._read_recipe_config_map(job)
        if stored_recipe and yaml.safe_load(stored_recipe) != yaml.safe_load(recipe):
            raise ConfigError(
                f"run_id={job.run_id!r} is a run with another configuration (ConfigMap "
                f"{job.submission_id} in {self._namespace}); choose another run_id, or take that "
                "run up as it is by `dreambooth resume --k8s`"
            )

    def config(self, job: RunJob) -> Config:
        """The configuration a run was sent with. raises: ConfigError if its ConfigMap is gone"""
        recipe = self._read_recipe_config_map(job)
        if not recipe:
            raise ConfigError(f"the ConfigMap {job.submission_id} in {self._namespace} is gone")
        return parse_config(recipe, f"ConfigMap {job.submission_id}", [])

    def resume(self, run: str) -> RunJob:
        """Let pods take a run up where it stands, unless they do already, or it has ended well."""
        previous_job = self.get(run)
        if previous_job.state in _ACTIVE or _has_ended_well(previous_job):
            return previous_job
        if previous_job.state == "suspended":
            self._set_suspended(previous_job, "false")
            return previous_job
        # KubeRay begins no job again that has ended: the same one is made anew.
        rayjob_manifest = _without_server_fields(self._read_rayjob(previous_job))
        run_kubectl(*_ANEW, text=json.dumps(rayjob_manifest))
        return previous_job

    def state(self, job: RunJob) -> str:
        """How a job stands now, in a word; for one that failed, with the reason."""
        rayjob_resource = self._read_rayjob(job)
        state_word, rayjob_status = (
            _describe_state(rayjob_resource),
            rayjob_resource.get("status", {}),
        )
        reasons = [rayjob_status.get(key, "") for key in ("reason", "message")]
        reason_text = " ".join(reason for reason in reasons if reason)
        return (
            f"{state_word}: {reason_text}" if state_word == "failed" and reason_text else state_word
        )

    def is_active(self, job: RunJob) -> bool:
        """Whether a job waits or runs."""
        return _describe_state(self._read_rayjob(job)) in _ACTIVE

    def has_begun(self, job: RunJob) -> bool:
        """Whether its pods have come: before, there is nobody to hear of anything."""
        return _describe_state(self._read_rayjob(job)) != "pending"

    def logs(self, job: RunJob) -> str:
        """What the job has printed, by the pods that submitted it, one after the other.

        raises: CapacityError if there are none
        """
        pods = self._read_resources("pods", f"--selector=job-name={job.submission_id}")
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        if not pods:
            raise CapacityError(f"{job.run_id} has printed nothing: {self.state(job)}")
        return "".join(
            run_kubectl("logs", pod["metadata"]["name"], f"--container={SUBMITTER}",
                        f"--namespace={self._namespace}")
            for pod in pods
        )  # fmt: skip

    def kill(self, job: RunJob) -> None:
        """Take a job's pods away; `resume` lets them come again."""
        self._set_suspended(job, "true")

    def _set_suspended(self, job: RunJob, value: str) -> None:
        run_kubectl("patch", _KIND, job.submission_id, f"--namespace={self._namespace}",
                    "--type=merge", f"--patch={_SUSPEND.format(value)}")  # fmt: skip

    def _read_resources(self, kind: str, *arguments: str) -> list[Resource]:
        return read_kubernetes_objects(kind, *arguments, f"--namespace={self._namespace}")

    def _read_rayjob(self, job: RunJob) -> Resource:
        rayjob_resources = self._read_resources(_KIND, job.submission_id)
        if not rayjob_resources:
            raise ConfigError(f"the RayJob {job.submission_id} in {self._namespace} is gone")
        return rayjob_resources[0]

    def _read_recipe_config_map(self, job: RunJob) -> str:
        config_maps = self._read_resources("configmaps", job.submission_id)
        return str(config_maps[0].get("data", {}).get(RECIPE, "")) if config_maps else ""


def _is_run_rayjob(resource: Resource) -> bool:
    return {RUN_ID, RUN_URI} <= set(resource["metadata"].get("annotations", {}))


def _parse_run_job(resource: Resource) -> RunJob:
    resource_metadata = resource["metadata"]
    creation_time = resource_metadata.get("creationTimestamp")
    return RunJob(
        run_id=resource_metadata["annotations"][RUN_ID],
        run_uri=resource_metadata["annotations"][RUN_URI],
        state=_describe_state(resource),
        submission_id=resource_metadata["name"],
        attempt=1,
        started_ms=int(datetime.datetime.fromisoformat(creation_time).timestamp() * 1000)
        if creation_time
        else 0,
    )


def _describe_state(resource: Resource) -> str:
    rayjob_status: Mapping[str, Any] = resource.get("status") or {}
    job_deployment_status, job_status = (
        rayjob_status.get("jobDeploymentStatus", ""),
        rayjob_status.get("jobStatus", ""),
    )
    if job_deployment_status in _WAITING:
        return "pending"
    if job_deployment_status in ("Failed", "ValidationFailed"):
        return "failed"
    # Ray's word counts once KubeRay has done with the job: before, it may be tried again.
    if job_deployment_status == "Complete":
        return str(job_status).lower()
    return {"Suspending": "stopping", "Suspended": "suspended"}.get(
        job_deployment_status, "running"
    )


def _has_ended_well(job: RunJob) -> bool:
    """Whether a run has ended well, as far as this machine can see its storage."""
    try:
        return is_finished(Store(job.run_uri))
    except (StorageError, OSError):
        return job.state == "succeeded"


def _without_server_fields(resource: Resource) -> Resource:
    """A resource as somebody would send it. What suspended it is no part of that."""
    resource_metadata = {
        key: resource["metadata"][key]
        for key in ("name", "namespace", "labels", "annotations")
        if key in resource["metadata"]
    }
    resource_spec = {key: value for key, value in resource["spec"].items() if key != "suspend"}
    return {key: resource[key] for key in ("apiVersion", "kind")} | {
        "metadata": resource_metadata,
        "spec": resource_spec,
    }
