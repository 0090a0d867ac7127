"""Runs on a cluster through Ray's Jobs API: submit, look at, stop, take up again.

The run lives in storage and the job on the cluster; neither needs the machine that sent it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cluster.cluster_jobs import ClusterJobs
from dreambooth_ray.config.base_model import ModelConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import is_remote_uri, upload_photographs
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_mirror import upload_local_model
from dreambooth_ray.runs import is_finished, open_run, read_run_config
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True)
class RunJob:
    """The newest job of one run. state: Ray's word for it, in small letters."""

    run_id: str
    run_uri: str
    state: str
    submission_id: str
    attempt: int
    started_ms: int


class RayJobs(ClusterJobs):
    """The runs of one cluster."""

    def runs(self) -> list[RunJob]:
        """The newest job of every run, newest run first."""
        newest_jobs: dict[str, RunJob] = {}
        for job in self.client.list_jobs():
            job_metadata = job.metadata or {}
            if "run_uri" not in job_metadata or job.submission_id is None:
                continue
            training_job = RunJob(
                run_id=job_metadata["run_id"],
                run_uri=job_metadata["run_uri"],
                state=str(job.status.value).lower(),
                submission_id=job.submission_id,
                attempt=int(job_metadata["attempt"]),
                started_ms=int(job.start_time or 0),
            )
            if (
                training_job.run_id not in newest_jobs
                or newest_jobs[training_job.run_id].attempt < training_job.attempt
            ):
                newest_jobs[training_job.run_id] = training_job
        return sorted(newest_jobs.values(), key=lambda run: -run.started_ms)

    def find(self, run_id: str) -> RunJob | None:
        """The newest job of a run, if it has one here."""
        return next(
            (training_job for training_job in self.runs() if training_job.run_id == run_id), None
        )

    def get(self, run_id: str) -> RunJob:
        """As `find`; raises ConfigError naming the runs there are."""
        training_job = self.find(run_id)
        if training_job is None:
            run_ids = ", ".join(listed_job.run_id for listed_job in self.runs()[:8]) or "none"
            raise ConfigError(f"no run {run_id!r} at {self.entry.address}; its runs: {run_ids}")
        return training_job

    def submit(self, config: Config) -> RunJob:
        """Upload photographs, open the run, start its job; the same run is started once.

        A run that is under way, or has ended well, is given back as it is.
        raises: ConfigError if the name is that of another run
        """
        portable_config = make_portable_config(config)
        run_store = open_run(portable_config)
        previous_job = self.find(str(portable_config.run_id))
        if previous_job and (
            previous_job.state in ("pending", "running") or is_finished(run_store)
        ):
            return previous_job
        return self._start_job(str(portable_config.run_id), run_store, previous_job)

    def resume(self, run_id: str) -> RunJob:
        """Start a job that takes the run up where it stands, unless one does already."""
        previous_job = self.get(run_id)
        run_store = Store(previous_job.run_uri)
        if previous_job.state in ("pending", "running") or is_finished(run_store):
            return previous_job
        return self._start_job(run_id, run_store, previous_job)

    def _start_job(self, run_id: str, run_store: Store, previous_job: RunJob | None) -> RunJob:
        attempt = previous_job.attempt + 1 if previous_job else 1
        submission_id = f"{run_id}.{attempt}"
        job_metadata = {"run_id": run_id, "run_uri": run_store.uri, "attempt": str(attempt)}
        self.submit_command(submission_id, ("resume", run_store.uri), job_metadata)
        return RunJob(run_id, run_store.uri, "pending", submission_id, attempt, 0)

    def config(self, job: RunJob) -> Config:
        """What the run was sent with. raises: CheckpointError if its storage has none"""
        return read_run_config(Store(job.run_uri))

    def has_begun(self, job: RunJob) -> bool:
        """Whether somebody hears of requests: a driver is there as soon as a job is."""
        return True


def make_portable_config(config: Config) -> Config:
    """The same run, with photographs and model in storage, named by its content.

    What hosts find by its name, or by the folder that storage is itself, stays where it is.
    raises: ConfigError for a model that can't be sent
    """
    storage = Store(config.storage.uri)
    subjects = [
        s
        if is_remote_uri(s.photos) or storage.is_local
        else s.model_copy(update={"photos": upload_photographs(Path(s.photos), storage)})
        for s in config.all_subjects
    ]
    portable_subjects = tuple(subjects) if config.subjects else ()
    cluster_config = config.cluster.model_copy(update={"address": None})
    portable_fields = {
        "subject": subjects[0],
        "subjects": portable_subjects,
        "cluster": cluster_config,
        "model": config.model if storage.is_local else _upload_model(config.model, storage),
    }
    portable_config = config.model_copy(update=portable_fields)
    return portable_config.model_copy(
        update={"run_id": config.run_id or _derive_run_id_from_config(portable_config)}
    )


def _upload_model(model: ModelConfig, storage: Store) -> ModelConfig:
    uploaded_model_uri = upload_local_model(model.source, "model.uri", storage)
    if uploaded_model_uri == model.source:
        return model
    # One model by now, whatever its parts were taken from.
    cleared_model_fields = {"vae": None, "text_encoder": None, "prediction_type": None}
    return model.model_copy(update={"uri": uploaded_model_uri, **cleared_model_fields})


def _derive_run_id_from_config(config: Config) -> str:
    """A run id of the run's content: whoever submits it again means the same run."""
    config_json = json.dumps(
        config.model_dump(mode="json", exclude={"cluster", "memory"}), sort_keys=True
    )
    class_noun_slug = "".join(c if c.isalnum() else "-" for c in config.subject.class_noun.lower())
    return f"{class_noun_slug}-{hashlib.sha256(config_json.encode()).hexdigest()[:12]}"
