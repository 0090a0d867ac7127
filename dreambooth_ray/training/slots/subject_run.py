"""A subject's run while it is in a slot: its lease, its metrics, its checkpoints, its end.

What is stored is what a run alone stores: whoever lists, watches, resumes or serves it sees no
difference.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.models.components import Components
from dreambooth_ray.storage import fence
from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.storage.store import Store, use_storage_options
from dreambooth_ray.storage.version_catalog import publish_run
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.validation import Validation, ValidationSet
from dreambooth_ray.training.checkpoint import restore
from dreambooth_ray.training.checkpoint.download import STATE, BaseModel
from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint
from dreambooth_ray.training.checkpoint.save import CheckpointUploader, StopRequest, WorkerRank
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.datasets import make_datasets
from dreambooth_ray.training.early_stopping import list_validation_losses
from dreambooth_ray.training.metrics_log import (
    FAILURES,
    RESTARTS,
    SKIPPED,
    MetricsLog,
    read_metrics,
)
from dreambooth_ray.training.nan_guard import NanGuard
from dreambooth_ray.training.restarts import read_restarts
from dreambooth_ray.training.run_state import read_run_state
from dreambooth_ray.training.slots.slot_subject import AdapterTrainingState, SlotSubject
from dreambooth_ray.training.slots.slot_trainer import SlotTrainer
from dreambooth_ray.training.slots.subject_checkpoint import (
    load_subject_checkpoint,
    save_subject_checkpoint,
)
from dreambooth_ray.training.slots.subject_evaluation import SubjectEvaluation
from dreambooth_ray.training.stop_request import is_stop_requested
from dreambooth_ray.training.worker_job import WorkerJob

SubjectEnd = Literal["done", "stopped"]
# Makes the bundle of a trained run. It gets the job, and the last checkpoint's files while they
# are still here.
Export = Callable[[WorkerJob, LastLocalCheckpoint | None], None]
# One process, on one host.
_RANK = WorkerRank(0, 0, 0, 1)
_CLOSE_TIMEOUT_S = 10.0


class SubjectRun:
    """The run of one job. Claim it, then join, then look after each step, then finish or abandon.

    raises: in all of them LeaseLostError, once the run is another process's
    """

    def __init__(self, job: WorkerJob, say: Callable[[str], None] = print) -> None:
        """say: hears of a holder that may be dead and is waited for"""
        use_storage_options(job.run_uri, job.storage_options)
        self.config = parse_config(job.config, job.run_uri, [])
        self.run, self.job, self._say = Store(job.run_uri), job, say
        self._stop_request = StopRequest(self.run, say)
        self._metrics_log: MetricsLog | None = None
        self._loggers: Loggers | None = None
        self._side_work: SideWork | None = None
        self._uploader: CheckpointUploader | None = None
        self._metrics: dict[str, float] = {}

    @property
    def run_id(self) -> str:
        """Of the run."""
        return str(self.config.run_id)

    def claim(self) -> None:
        """Become the run's one writer; may wait for one that died.

        raises: StorageError if another process works on it
        """
        lease_s = self.config.cluster.lease_s
        # A worker whose host was given up may show signs of life for a while.
        self._lease = fence.keep_lease(self.run, lease_s, 2 * lease_s, self._say)
        self._lease.__enter__()
        try:
            fence.record_resumed_step(self.run, self._lease.number)
        except BaseException:
            self._lease.__exit__(None, None, None)
            raise
        self.job = replace(self.job, lease=self._lease.number)

    def find_earlier_outcome(self) -> SubjectEnd | None:
        """How the run has ended before its training begins here: by a person, or long ago."""
        if is_stop_requested(self.run):
            return "stopped"
        return "done" if read_run_state(self.run, self.config).is_trained else None

    def join(
        self,
        trainer: SlotTrainer,
        components: Components,
        model: BaseModel,
        priors: PriorSet | None,
    ) -> SlotSubject:
        """Load what the run trains on, and its newest checkpoint, into a free slot.

        priors: its class images
        raises: DataError, ConfigError, CheckpointError, StorageError
        """
        self._denoiser_name = components.family.denoiser.name
        with restore.restored_checkpoint(
            self.run, self.config, model, _RANK
        ) as restored_checkpoint:
            training_state = None
            if restored_checkpoint is not None:
                initial_adapter = trainer.make_adapter(self.config.train.lora, self.config.seed)
                training_state = load_subject_checkpoint(
                    restored_checkpoint.state, self._denoiser_name, initial_adapter
                )
            dataset, validation_set = make_datasets(self.config, components, priors, (0, 1))
            subject = trainer.join(self.config, dataset, training_state)
        try:
            self._open_loggers_and_uploader(trainer, dataset, validation_set, training_state)
        except BaseException:
            trainer.leave(subject)
            raise
        return subject

    def _open_loggers_and_uploader(
        self,
        trainer: SlotTrainer,
        dataset: TrainingDataset,
        validation_set: ValidationSet | None,
        training_state: AdapterTrainingState | None,
    ) -> None:
        """Metrics, loggers and checkpoints, from the step that training goes on from."""
        config, run, lease_number = self.config, self.run, self._lease.number
        start_step = dataset.start = training_state.step if training_state else 0
        metrics_records = [r for r in read_metrics(run, lease_number) if r["step"] <= start_step]
        last_record = metrics_records[-1] if metrics_records else {}
        side_work = self._side_work = SideWork(run, int(last_record.get(FAILURES, 0)))
        validation = (
            Validation(config, validation_set, list_validation_losses(metrics_records))
            if validation_set is not None
            else None
        )
        self._evaluation = SubjectEvaluation(trainer.solo_networks, validation, side_work)
        self._loggers = Loggers(run, config, start_step, side_work)
        self._guard = NanGuard(dataset, config.train.precision, int(last_record.get(SKIPPED, 0)))
        self._num_restarts = len(read_restarts(run))
        self._uploader = CheckpointUploader(
            run, config, side_work, _RANK, self._loggers.upload_logs, lease_number
        )
        self._metrics_log = self._uploader.metrics_log = MetricsLog(run, start_step, lease_number)
        self._loggers.open(self._metrics_log.records)
        self._stop_request.start()
        self._stepped_at_s = time.monotonic()

    def process_finished_step(self, subject: SlotSubject, values: list[float]) -> SubjectEnd | None:
        """After a step: validate, write it down, sample and save, each if it is time.

        values: of `SlotTrainer.step`; returns how the subject ends, if it is to leave
        raises: DataError if too many steps in a row had no gradient that is a number
        """
        self._lease.check()
        metrics_record = subject.build_metrics_record(subject.step, values)
        self._record_metrics(self._evaluation.validate(subject) | metrics_record)
        self._log_sample_images(subject)
        subject_outcome: SubjectEnd | None = None
        if subject.is_done or self._evaluation.has_stalled:
            subject_outcome = "done"
        elif self._stop_request.is_requested:
            subject_outcome = "stopped"
        if subject_outcome or subject.step % self.config.checkpoint.every == 0:
            self._save_checkpoint(subject, is_kept=subject_outcome == "done")
        return subject_outcome

    def _record_metrics(self, record: dict[str, float]) -> None:
        assert self._metrics_log is not None
        assert self._loggers is not None
        assert self._side_work is not None
        restart_and_failure_counts = {
            RESTARTS: self._num_restarts,
            FAILURES: self._side_work.num_failures,
        }
        record |= {name: count for name, count in restart_and_failure_counts.items() if count}
        self._guard.count_skipped_step(record)
        self._metrics = record
        self._metrics_log.append([record])
        now_s = time.monotonic()
        training_step_s, self._stepped_at_s = max(now_s - self._stepped_at_s, 1e-9), now_s
        self._loggers.log(record, self.config.total_images_per_step / training_step_s)
        self._guard.check()

    def _log_sample_images(self, subject: SlotSubject) -> None:
        assert self._loggers is not None
        for prompt, image in self._evaluation.sample(subject):
            self._loggers.add_image(f"samples/{prompt}", image, subject.step)

    def _save_checkpoint(self, subject: SlotSubject, is_kept: bool) -> None:
        assert self._uploader is not None
        self._uploader.finish_upload()
        checkpoint_nonce = uuid.uuid4().hex[:12]
        checkpoint_folder = ScratchFolder(
            f"checkpoint-{checkpoint_nonce}", self.config.storage.scratch
        )
        save_subject_checkpoint(subject, self._denoiser_name, checkpoint_folder.path / STATE)
        checkpoint_manifest_fields: dict[str, object] = {
            "strategy": self.config.train.strategy,
            "world_size": 1,
            "model_hash": self.job.model_hash,
            "lease": self._lease.number,
        }
        self._uploader.submit(
            subject.step,
            checkpoint_nonce,
            checkpoint_folder,
            checkpoint_manifest_fields,
            self._metrics,
            is_kept,
        )

    def finish(self, end: SubjectEnd, export: Export) -> None:
        """Commit what is under way; of a trained run, make its bundle and publish it."""
        try:
            try:
                if self._uploader is not None:
                    self._uploader.finish_upload()
            finally:
                self._close_loggers()
            self._lease.check()
            if end == "done":
                export(self.job, self._final_local_checkpoint)
                publish_run(self.run)
        finally:
            if local_checkpoint := self._final_local_checkpoint:
                local_checkpoint.scratch.remove()
            self._stop_request.stop_polling()
            self._lease.__exit__(None, None, None)

    @property
    def _final_local_checkpoint(self) -> LastLocalCheckpoint | None:
        return self._uploader.kept if self._uploader is not None else None

    def _close_loggers(self) -> None:
        if self._metrics_log is not None:
            self._metrics_log.close()
        if self._loggers is not None:
            self._loggers.close()

    def abandon(self) -> None:
        """The end of a run that failed: what was good before is committed, and others may take it.

        raises nothing in place of the error that it failed with
        """
        self._stop_request.stop_polling()
        # Without one the run was never opened, and there is little to do.
        side_work = self._side_work or SideWork(self.run)
        if self._uploader is not None:
            side_work.run("the last checkpoint's commit", self._uploader.finish_upload, None)
        side_work.run("the last metrics", self._close_loggers, None)
        side_work.run("giving the lease back", lambda: self._lease.__exit__(None, None, None), None)
        if self._loggers is None:
            side_work.close(_CLOSE_TIMEOUT_S)
