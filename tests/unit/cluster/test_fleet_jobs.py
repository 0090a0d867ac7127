"""A storage's fleet as a job; Ray's Jobs API is played here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.cluster_registry import ClusterEntry
from cluster.fleet_jobs import RayFleetJobs, refuse_local_storage
from cluster.fleet_settings import FleetSettings
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.store import Store

URI = "memory://bucket/fleet-jobs"
SETTINGS = FleetSettings(URI, slots=4, fewest=1, most=2)


class PlayedClient:
    """Keeps jobs as Ray does; those of a name that it has are refused."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}

    def list_jobs(self) -> list[Any]:
        return list(self.jobs.values())

    def submit_job(self, *, submission_id: str, **job: Any) -> None:
        if submission_id in self.jobs:
            raise RuntimeError("it is there")
        self.jobs[submission_id] = SimpleNamespace(
            **job, submission_id=submission_id, status=JobStatus.RUNNING, start_time=1
        )


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> PlayedClient:
    client = PlayedClient()
    monkeypatch.setattr("cluster.cluster_jobs.JobSubmissionClient", lambda *_, **__: client)
    monkeypatch.setattr("cluster.cluster_jobs.Dashboard.versions", lambda _: None)
    queue = WorkQueue(Store(URI).sub("queue/fleet/group"))
    queue.add(WorkRecord(id="a", owner="ann", payload="", created_ms=1))
    return client


def open_jobs() -> RayFleetJobs:
    return RayFleetJobs(ClusterEntry.model_validate({"address": "http://x:8265"}))


def test_a_storages_fleet_is_started_once_and_again_after_its_end(client: PlayedClient) -> None:
    first = open_jobs().start(SETTINGS)
    assert open_jobs().start(SETTINGS).submission_id == first.submission_id
    (job,) = client.jobs.values()
    command = f"'fleet', 'run', '--storage={URI}', '--slots=4', '--parallel=1-2', '--retries=2'"
    assert command in job.entrypoint
    assert "--stay" not in job.entrypoint
    assert open_jobs().get(URI).submission_id == first.submission_id
    job.status = JobStatus.FAILED
    second = open_jobs().start(SETTINGS)
    assert (first.attempt, second.attempt, second.name) == (1, 2, first.name)
    assert len(client.jobs) == 2


def test_a_fleet_that_runs_with_other_settings_is_named(client: PlayedClient) -> None:
    open_jobs().start(SETTINGS)
    other = FleetSettings(URI, slots=4, fewest=1, most=2, stays=True)
    with pytest.raises(ConfigError, match=r"runs already, .*--parallel=1-2.* `dreambooth fleet st"):
        open_jobs().start(other)
    assert len(client.jobs) == 1


def test_runs_are_no_fleets(client: PlayedClient) -> None:
    metadata = {"run_id": "mine", "run_uri": URI, "attempt": "1"}
    client.submit_job(submission_id="mine.1", metadata=metadata)
    assert open_jobs().find(URI) is None
    with pytest.raises(
        ConfigError, match=r"--storage=memory://.*: http://x:8265 has had no fleet of it"
    ):
        open_jobs().get(URI)


def test_a_storage_without_a_queue_is_refused(client: PlayedClient) -> None:
    with pytest.raises(ConfigError, match="holds no queue of subjects"):
        open_jobs().start(FleetSettings("memory://bucket/empty"))
    assert client.jobs == {}


def test_a_folder_of_this_machine_is_refused_by_name(client: PlayedClient, tmp_path: Path) -> None:
    settings = FleetSettings(str(tmp_path))
    with pytest.raises(ConfigError, match=r"--storage=/.*: it is a folder of this machine"):
        open_jobs().start(settings)
    refuse_local_storage(URI)


def test_what_is_started_is_what_the_command_line_means(client: PlayedClient) -> None:
    """The job's words are read back by the same verb."""
    open_jobs().start(FleetSettings(URI, 6, 0, 3, 1, 2, 2.5, stays=True))
    (job,) = client.jobs.values()
    assert json.loads(job.metadata["words"])[3:] == [
        "--slots=6", "--parallel=0-3", "--retries=1", "--budget=2", "--idle-s=2.5", "--stay",
    ]  # fmt: skip
