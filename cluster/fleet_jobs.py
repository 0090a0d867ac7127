"""`dreambooth fleet run` as a job of a cluster: one at a time for each storage.

The queue lies in storage. A job that dies loses nothing: the next one goes on with what is there.
"""

import hashlib
import json
from dataclasses import dataclass

from cluster.cluster_jobs import ClusterJobs
from cluster.fleet_settings import FleetSettings
from cluster.fleet_store import FleetStore
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class FleetJob:
    """The newest job of a storage's fleet. state: Ray's word for it, in small letters

    words: of its command, after `dreambooth`
    """

    name: str
    state: str
    submission_id: str
    attempt: int
    words: tuple[str, ...]


class RayFleetJobs(ClusterJobs):
    """The fleets of one cluster."""

    def start(self, settings: FleetSettings) -> FleetJob:
        """Start a storage's fleet, unless it runs already.

        raises: ConfigError if it runs with other settings, or there is no queue
        """
        refuse_local_storage(settings.storage)
        FleetStore(settings.storage).refuse_empty_storage()
        storage_uri, command_words = Store(settings.storage).uri, tuple(settings.command_words)
        previous_job = self.find(storage_uri)
        if previous_job is not None and previous_job.state in ("pending", "running"):
            self._refuse_other_command(previous_job, command_words, storage_uri)
            return previous_job
        fleet_name, attempt = (
            _name_fleet_by_storage(storage_uri),
            previous_job.attempt + 1 if previous_job else 1,
        )
        job_metadata = {
            "fleet": fleet_name,
            "attempt": str(attempt),
            "words": json.dumps(command_words),
        }
        self.submit_command(f"{fleet_name}.{attempt}", command_words, job_metadata)
        return FleetJob(fleet_name, "pending", f"{fleet_name}.{attempt}", attempt, command_words)

    def _refuse_other_command(
        self, job: FleetJob, command_words: tuple[str, ...], uri: str
    ) -> None:
        if job.words != command_words:
            raise ConfigError(
                f"{job.name} at {self.entry.address} runs already, with other settings: "
                f"`dreambooth {' '.join(job.words)}`; end it first, by `dreambooth fleet stop "
                f"--storage {uri}`"
            )

    def find(self, storage_uri: str) -> FleetJob | None:
        """The newest job of a storage's fleet, if it has had one here."""
        fleet_name = _name_fleet_by_storage(Store(storage_uri).uri)
        jobs = [
            FleetJob(
                fleet_name,
                str(job.status.value).lower(),
                str(job.submission_id),
                int(job.metadata["attempt"]),
                tuple(json.loads(job.metadata["words"])),
            )
            for job in self.client.list_jobs()
            if (job.metadata or {}).get("fleet") == fleet_name
        ]
        return max(jobs, key=lambda job: job.attempt, default=None)

    def get(self, storage_uri: str) -> FleetJob:
        """As `find`; raises ConfigError where it has had none."""
        job = self.find(storage_uri)
        if job is None:
            raise ConfigError(
                f"--storage={storage_uri}: {self.entry.address} has had no fleet of it; start one "
                "by `dreambooth fleet run` with its --cluster"
            )
        return job


def refuse_local_storage(storage_uri: str) -> None:
    """raises: ConfigError for a folder, which a cluster's hosts don't have"""
    if Store(storage_uri).is_local:
        raise ConfigError(
            f"--storage={storage_uri}: it is a folder of this machine, and hosts of --cluster pull "
            "subjects from a storage that they all reach; add the subjects with a storage.uri such "
            "as s3://bucket/folder, or leave out --cluster"
        )


def _name_fleet_by_storage(uri: str) -> str:
    """Of a storage's fleet, wherever it is started from."""
    return f"fleet-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"
