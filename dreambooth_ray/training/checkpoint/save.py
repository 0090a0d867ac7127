"""When checkpoints are made, and how they reach storage while training goes on."""

import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
from torch import distributed

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.error_tolerant_check import ErrorTolerantCheck
from dreambooth_ray.storage.scratch import ScratchFolder, named_scratch_path
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.checkpoint import retention
from dreambooth_ray.training.checkpoint.download import STATE
from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint
from dreambooth_ray.training.evaluation_decision import read_selection, write_early_end_step
from dreambooth_ray.training.metrics_log import MetricsLog
from dreambooth_ray.training.stop_request import is_stop_requested

_PART_TIMEOUT_S, _POLL_S = 600.0, 0.5


@dataclass(frozen=True)
class WorkerRank:
    """This worker's rank in the group and on its host, and which host that is."""

    rank: int
    local_rank: int
    host: int
    num_hosts: int


class CheckpointUploader:
    """Uploads one checkpoint at a time, in a thread; its errors come with the next."""

    def __init__(
        self,
        run: Store,
        config: Config,
        side_work: SideWork,
        worker_rank: WorkerRank,
        on_commit: Callable[[], None] = lambda: None,
        lease: int = 0,
    ) -> None:
        """on_commit: called after each commit, on the first host; lease: number of the run's"""
        self._run, self._config, self._lease = run, config, lease
        self._side_work, self._worker_rank = side_work, worker_rank
        self._on_commit = on_commit
        self._rotation = retention.CheckpointRotation(run, config, lease)
        self.metrics_log: MetricsLog | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.kept: LastLocalCheckpoint | None = None

    def submit(
        self,
        step: int,
        nonce: str,
        local: ScratchFolder,
        about: dict[str, object],
        metrics: dict[str, float],
        is_kept: bool = False,
    ) -> None:
        """Upload this host's files of `local`, and remove them; the first host commits.

        about, metrics: what the manifest says beside the step; metrics are the step's
        is_kept: once committed they stay, for whoever makes something of the last checkpoint
        """
        assert self._pending is None
        step_metrics = {name: value for name, value in metrics.items() if name != "step"}
        about = {**about, "step": step, "metrics": step_metrics, "created_at": time.time()}
        self._pending = self._pool.submit(self._commit_files, step, nonce, local, about, is_kept)

    def finish_upload(self) -> None:
        """Wait until nothing is under way; raises what went wrong with it."""
        pending_upload, self._pending = self._pending, None
        if pending_upload is not None:
            pending_upload.result()

    def _commit_files(
        self, step: int, nonce: str, local: ScratchFolder, about: dict[str, object], is_kept: bool
    ) -> None:
        name = paths.checkpoint(step, self._lease)
        folder = f"{name}-{nonce}"
        try:
            entries = manifest.upload_files(self._run, folder, local.path)
            if self._worker_rank.host:
                entries_json = json.dumps([asdict(entry) for entry in entries]).encode()
                self._run.write(f"{folder}/{_entries_file(self._worker_rank.host)}", entries_json)
                return
            for host_index in range(1, self._worker_rank.num_hosts):
                entries += self._wait_for_host_entries(folder, host_index)
            # Metrics go first: a checkpoint never knows more than they do.
            if self.metrics_log is not None:
                self.metrics_log.flush()
            manifest.commit_uploaded(self._run, name, folder, entries, about)
            self._side_work.run(
                "removing old checkpoints",
                lambda: self._rotation.rotate_after_commit(step, self._list_all_metrics(about)),
                None,
            )
            if is_kept:
                digests = {entry.name: entry.sha256 for entry in entries}
                self.kept = LastLocalCheckpoint(step, local, digests)
            self._on_commit()
        finally:
            if self.kept is None:
                local.remove()

    def _list_all_metrics(self, about: dict[str, object]) -> list[dict[str, Any]]:
        """The metrics that the run went on from, and those of the checkpoint just committed."""
        step_records = self.metrics_log.records if self.metrics_log is not None else []
        checkpoint_metrics = about.get("metrics")
        if not isinstance(checkpoint_metrics, dict):
            return step_records
        return [*step_records, {"step": about["step"], **checkpoint_metrics}]

    def _wait_for_host_entries(self, folder: str, host: int) -> list[manifest.FileEntry]:
        """What another host has uploaded, once it says so."""
        deadline = time.monotonic() + _PART_TIMEOUT_S
        while not self._run.exists(f"{folder}/{_entries_file(host)}"):
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self._run.uri}/{folder}: host {host} has not uploaded its part of the "
                    f"checkpoint within {_PART_TIMEOUT_S:.0f} s; look at that host"
                )
            time.sleep(_POLL_S)
        host_entries = json.loads(self._run.read(f"{folder}/{_entries_file(host)}"))
        return [manifest.FileEntry(**entry) for entry in host_entries]


def _entries_file(host: int) -> str:
    return f"part-{host:05d}.json"


class StopRequest:
    """Whether somebody has asked the run to stop, looked up beside the training thread."""

    def __init__(
        self, run: Store, say: Callable[[str], None], interval_s: float | None = None
    ) -> None:
        self._run, self._is_seen = run, threading.Event()
        self._check = ErrorTolerantCheck("looking for requests to stop", say)
        self._ended = threading.Event()
        self._interval_s = interval_s or (0.5 if run.is_local else 10.0)

    def start(self) -> None:
        """Poll from now on."""
        threading.Thread(target=self._poll_storage, name="stop request", daemon=True).start()

    def _poll_storage(self) -> None:
        while not self._ended.wait(self._interval_s) and not self.is_requested:
            # Whatever storage answers now, the next poll may see more.
            self._check.run(self._look_for_stop_request)

    def _look_for_stop_request(self) -> None:
        if is_stop_requested(self._run):
            self._is_seen.set()

    def stop_polling(self) -> None:
        """Poll no more."""
        self._ended.set()

    def wait_for_stop_request(self, timeout_s: float) -> bool:
        """Wait for the request; whether it was seen."""
        return self._is_seen.wait(timeout_s)

    @property
    def is_requested(self) -> bool:
        """Whether the request has been seen."""
        return self._is_seen.is_set()


class CheckpointSaver:
    """Commits the complete state every `every` steps, after the last one, and when asked to stop.

    Workers write their own shards to their own disk; the first worker of each host uploads
    what lies there, in a thread; the first of all commits. One checkpoint is under way at most.
    """

    def __init__(
        self,
        run: Store,
        config: Config,
        side_work: SideWork,
        worker_rank: WorkerRank,
        about: dict[str, object],
        on_commit: Callable[[], None] = lambda: None,
        lease: int = 0,
    ) -> None:
        """about: what a checkpoint's manifest says beside its step and metrics; lease: number of
        the run's lease
        """
        self._run, self._config, self._worker_rank, self._about = run, config, worker_rank, about
        self._side_work, self._lease = side_work, lease
        self._uploader = CheckpointUploader(run, config, side_work, worker_rank, on_commit, lease)
        self._stop_request = StopRequest(run, side_work.say)
        self.waited_s = 0.0

    def start(self, metrics_log: MetricsLog | None) -> None:
        """Listen to requests to stop, on the first worker. metrics_log: flushed at each commit"""
        self._uploader.metrics_log = metrics_log
        if self._worker_rank.rank == 0:
            self._stop_request.start()

    @property
    def wants_stop(self) -> bool:
        """Whether the run was asked to stop, as this worker sees it."""
        return self._stop_request.is_requested

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether to save after the step just taken."""
        step, save_interval = trainer.global_step, self._config.checkpoint.every
        return step % save_interval == 0 or step == self._config.train.steps or trainer.should_stop

    def save(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Save, and stop if evaluations say so. metrics: of the step"""
        step = trainer.global_step
        if step % self._config.checkpoint.every == 0 and self._should_end_early(trainer, step):
            trainer.should_stop = True
        self._save(trainer, step, metrics)

    def _should_end_early(self, trainer: pl.Trainer, step: int) -> bool:
        """What the evaluations beside the training say, as the first worker reads it."""
        if not self._config.choice.patience:
            return False
        should_stop = False
        if self._worker_rank.rank == 0:
            should_stop = self._side_work.run(
                "early stopping", lambda: self._record_early_end(step), False
            )
        return (
            bool(trainer.strategy.broadcast(should_stop)) if trainer.world_size > 1 else should_stop
        )

    def _record_early_end(self, step: int) -> bool:
        """Write down that the run ends here, if its evaluations say so."""
        if not read_selection(self._run, self._lease).stop:
            return False
        if step < self._config.train.steps:
            write_early_end_step(self._run, step, self._lease)
        return True

    def _save(self, trainer: pl.Trainer, step: int, metrics: dict[str, float]) -> None:
        started_s = time.monotonic()
        self._uploader.finish_upload()
        upload_nonce = trainer.strategy.broadcast(uuid.uuid4().hex[:12])
        scratch_name = f"checkpoint-{upload_nonce}"
        scratch_path = named_scratch_path(scratch_name, self._config.storage.scratch)
        scratch_folder = None
        if self._worker_rank.local_rank == 0:
            scratch_folder = ScratchFolder(scratch_name, self._config.storage.scratch)
        trainer.strategy.barrier("scratch")
        trainer.save_checkpoint(scratch_path / STATE)
        trainer.strategy.barrier("checkpoint")
        if scratch_folder is not None:
            # Whole on this host, and the end: what is made of it need not come from storage.
            is_kept = trainer.should_stop or step == self._config.train.steps
            is_whole_here = self._worker_rank.num_hosts == 1 or self._config.train.strategy == "ddp"
            is_first_worker = self._worker_rank.rank == 0
            is_kept = is_kept and is_whole_here and is_first_worker
            self._uploader.submit(step, upload_nonce, scratch_folder, self._about, metrics, is_kept)
        self.waited_s += time.monotonic() - started_s

    @property
    def kept_checkpoint(self) -> LastLocalCheckpoint | None:
        """The last checkpoint, on the first worker; whoever uses it removes its files."""
        return self._uploader.kept

    def finish(self, trainer: pl.Trainer) -> None:
        """The run has not ended before its last checkpoint is committed."""
        self._stop_request.stop_polling()
        self._uploader.finish_upload()
        trainer.strategy.barrier("committed")

    def abandon(self) -> None:
        """What was good before an error is kept; raises nothing in place of that error."""
        self._stop_request.stop_polling()
        self._side_work.run("the last checkpoint's commit", self._uploader.finish_upload, None)


def find_worker_rank(context: Any) -> WorkerRank:
    """This worker's ranks, by Ray Train's context; a collective call."""
    host_index = int(context.get_node_rank())
    host_index_by_rank = [host_index]
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        host_index_by_rank = [0] * distributed.get_world_size()
        distributed.all_gather_object(host_index_by_rank, host_index)
    return WorkerRank(
        context.get_world_rank(), context.get_local_rank(), host_index, max(host_index_by_rank) + 1
    )
