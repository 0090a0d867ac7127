"""Jobs on a cluster through Ray's Jobs API: commands of ours, in the environment of its entry."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.cluster_registry import ClusterEntry
from cluster.dashboard import Dashboard, without_address_variables
from dreambooth_ray.errors import CapacityError, ConfigError

PACKAGES = ("dreambooth_ray", "cluster", "serve")
_ACTIVE = (JobStatus.PENDING, JobStatus.RUNNING)


class SubmittedJob(Protocol):
    """A job that Ray has."""

    @property
    def submission_id(self) -> str:
        """What Ray knows it by."""


class ClusterJobs:
    """The jobs of one cluster."""

    def __init__(self, entry: ClusterEntry) -> None:
        """raises: ConfigError if the token is refused, CapacityError if nothing answers"""
        self.entry = entry
        dashboard = Dashboard(entry)
        dashboard.versions()
        with without_address_variables():
            self.client = JobSubmissionClient(
                entry.address, headers=dashboard.headers, verify=dashboard.verify
            )

    def submit_command(
        self, submission_id: str, words: Sequence[str], metadata: Mapping[str, str]
    ) -> None:
        """Start a job, once. words: of its command, after `dreambooth`

        raises: CapacityError if the cluster takes none
        """
        try:
            # Ray refuses an id that it has seen: of two who submit at once, one job comes.
            self.client.submit_job(
                entrypoint=_entrypoint(*words),
                submission_id=submission_id,
                runtime_env=runtime_env(self.entry),
                metadata=dict(metadata),
            )
        except RuntimeError as error:
            # Ray's error has neither type nor status; whether the job is there tells them apart.
            if all(job.submission_id != submission_id for job in self.client.list_jobs()):
                raise CapacityError(f"{self.entry.address} took no job: {error}") from error

    def state(self, job: SubmittedJob) -> str:
        """Ray's word for a job now; for one that failed, with the reason."""
        job_info = self.client.get_job_info(job.submission_id)
        status_word = str(job_info.status.value).lower()
        return (
            f"{status_word}: {job_info.message}"
            if status_word == "failed" and job_info.message
            else status_word
        )

    def is_active(self, job: SubmittedJob) -> bool:
        """Whether a job waits or runs."""
        return self.client.get_job_status(job.submission_id) in _ACTIVE

    def logs(self, job: SubmittedJob) -> str:
        """Everything the job has printed."""
        return str(self.client.get_job_logs(job.submission_id))

    def kill(self, job: SubmittedJob) -> None:
        """End a job without a checkpoint."""
        self.client.stop_job(job.submission_id)


def _entrypoint(*words: str) -> str:
    quoted_words = ", ".join(repr(word) for word in ("dreambooth", *words))
    python_code = (
        f"import sys; sys.argv = [{quoted_words}]; from dreambooth_ray.cli.main import main; main()"
    )
    return f'python -c "{python_code}"'


def runtime_env(entry: ClusterEntry) -> dict[str, Any]:
    """What Ray prepares for a job: our code, or an image that has it, and the environment."""
    runtime_environment: dict[str, Any] = {
        "env_vars": {"TRANSFORMERS_VERBOSITY": "error", **entry.env}
    }
    if entry.code == "tree":
        runtime_environment["py_modules"] = [str(_find_package(name)) for name in PACKAGES]
        runtime_environment["excludes"] = ["**/__pycache__"]
    if entry.code == "image":
        runtime_environment = {"image_uri": entry.image, **runtime_environment}
    return runtime_environment


def _find_package(package: str) -> Path:
    package_spec = find_spec(package)
    if package_spec is None or not package_spec.submodule_search_locations:
        raise ConfigError(f"package {package} is not installed here; reinstall dreambooth-ray")
    return Path(next(iter(package_spec.submodule_search_locations)))
