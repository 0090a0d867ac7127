"""A process that trains subjects in slots: they are handed in, and it says how each ends.

One thread computes. What waits for storage does so in others: claims of runs, commits, bundles.
They all tell the first by messages in one queue.
"""

import gc
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.errors import PERMANENT, describe_error
from dreambooth_ray.memory.out_of_memory import explain_out_of_memory
from dreambooth_ray.models.adapter_stack import copy_network_without_memory
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.model_mirror import locate_model
from dreambooth_ray.models.precision import cast_untrainable_encoders, choose_fitting_device
from dreambooth_ray.models.trainable_params import prepare_tokenizers_and_schedule
from dreambooth_ray.models.weight_cache import set_model_cache_limit
from dreambooth_ray.storage.store import use_storage_options
from dreambooth_ray.training.checkpoint.download import BaseModel
from dreambooth_ray.training.checkpoint.last_local_checkpoint import LastLocalCheckpoint
from dreambooth_ray.training.slots.slot_subject import SlotSubject
from dreambooth_ray.training.slots.slot_trainer import SlotTrainer, SubjectBatchMismatchError
from dreambooth_ray.training.slots.subject_run import SubjectEnd, SubjectRun
from dreambooth_ray.training.strategy import count_threads
from dreambooth_ray.training.worker import open_priors, silence_lightning
from dreambooth_ray.training.worker_job import WorkerJob

# A claim that takes longer waits for a process that may have died; the batch goes on without it.
_CLAIM_S = 2.0
# So many joining at once are waited for, as a share of those that are there: one in so many.
_CLAIMS_WORTH_WAITING = 4
_CLAIM_THREADS, _END_THREADS = 32, 2
_KEPT_PRIOR_SETS = 8

# "ready": the worker itself, with no run; "trained": it has left its slot; what follows are ends.
# A misfit can be trained by itself.
EventKind = Literal["ready", "joined", "trained", "done", "stopped", "failed", "misfit"]
# Makes a bundle with parts that carry the run's adapters.
ExportWith = Callable[[WorkerJob, LastLocalCheckpoint | None, Callable[[Path], Components]], None]


@dataclass(frozen=True)
class SubjectEvent:
    """What has become of a subject.

    step: that it was at; note: why it failed; is_permanent: whether it would fail again
    """

    run_id: str
    kind: EventKind
    step: int = 0
    note: str = ""
    is_permanent: bool = False

    @classmethod
    def of_failure(cls, run_id: str, step: int, error: Exception) -> "SubjectEvent":
        """Its end by an error."""
        event_kind: EventKind = (
            "misfit" if isinstance(error, SubjectBatchMismatchError) else "failed"
        )
        return cls(run_id, event_kind, step, describe_error(error), isinstance(error, PERMANENT))


@dataclass(frozen=True)
class _ClaimError:
    run_id: str
    error: Exception


# From other threads: a job, None for no more; a run that was claimed, or was not; an end.
_Message = WorkerJob | SubjectRun | _ClaimError | SubjectEvent | None


class SlotWorker:
    """Runs of one `make_shared_batch_key` in a number of slots."""

    def __init__(
        self, job: WorkerJob, num_slots: int, rank: int, export: ExportWith, device: torch.device
    ) -> None:
        """job: any of the group, for the model; rank: the largest there is room for

        export: makes a trained run's bundle; called in a thread
        raises: ConfigError, CapacityError
        """
        silence_lightning()
        use_storage_options(job.run_uri, job.storage_options)
        config = parse_config(job.config, job.run_uri, [])
        set_model_cache_limit(config.storage.model_cache_gb)
        self._directory = locate_model(job.model_directory, job.model_hash, job.run_uri)
        self._model = BaseModel(self._directory, job.model_hash)
        torch.set_num_threads(count_threads(config, 1, 1))
        self._config, self._export = config, export
        self._components = _load_frozen_components(self._directory, config.train.precision, device)
        prepare_tokenizers_and_schedule(config, self._components)
        self._trainer = SlotTrainer(config, self._components, num_slots, rank, device)
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._runs: dict[SlotSubject, SubjectRun] = {}
        self._claimed: list[SubjectRun] = []
        self._claims: dict[str, float] = {}
        self._prior_sets: dict[tuple[str, int], PriorSet] = {}
        self._num_ending, self._is_closed = 0, False
        self._claimers = ThreadPoolExecutor(_CLAIM_THREADS, thread_name_prefix="claim")
        self._enders = ThreadPoolExecutor(_END_THREADS, thread_name_prefix="subject's end")

    def add(self, job: WorkerJob) -> None:
        """Hand in a run, from any thread; it waits here until a slot is free."""
        self._messages.put(job)

    def close(self) -> None:
        """No more runs come: `run` ends with the last of them. From any thread."""
        self._messages.put(None)

    def run(self) -> Iterator[SubjectEvent]:
        """Train what is handed in, and say what becomes of each.

        raises: CapacityError, with what would fit, if it runs out of memory
        """
        with explain_out_of_memory(self._config, self._directory):
            while not self._has_no_work_left:
                yield from self._read_messages()
                yield from self._join_claimed_runs()
                if self._trainer.subjects and not self._should_await_claims:
                    yield from self._step()
        self._claimers.shutdown()
        self._enders.shutdown()

    @property
    def _has_no_work_left(self) -> bool:
        has_no_runs = not (self._claims or self._claimed or self._runs or self._num_ending)
        return self._is_closed and has_no_runs and self._messages.empty()

    @property
    def _should_await_claims(self) -> bool:
        """Whether so many are about to join that a step is better taken with them.

        A free slot is computed too; and while a claim is waited for, all that are there wait.
        """
        now_s = time.monotonic()
        num_recent_claims = sum(now_s - since_s < _CLAIM_S for since_s in self._claims.values())
        return _CLAIMS_WORTH_WAITING * num_recent_claims > len(self._runs)

    def _read_messages(self) -> Iterator[SubjectEvent]:
        """All that are there; where nothing else is to be done, the next one is waited for."""
        while True:
            has_subjects = bool(self._trainer.subjects) or bool(self._claimed)
            try:
                if has_subjects and self._should_await_claims:
                    message = self._messages.get(timeout=_CLAIM_S)
                elif has_subjects:
                    message = self._messages.get_nowait()
                else:
                    message = self._messages.get()
            except queue.Empty:
                return
            if isinstance(message, WorkerJob):
                self._begin_claiming_run(message)
            elif isinstance(message, SubjectRun):
                del self._claims[message.run_id]
                self._claimed.append(message)
            elif message is None:
                self._is_closed = True
            elif isinstance(message, _ClaimError):
                del self._claims[message.run_id]
                yield SubjectEvent.of_failure(message.run_id, 0, message.error)
            else:
                self._num_ending -= 1
                yield message
            if self._has_no_work_left or self._claimed:
                return

    def _begin_claiming_run(self, job: WorkerJob) -> None:
        subject_run = SubjectRun(job)
        self._claims[subject_run.run_id] = time.monotonic()

        def claim_run() -> None:
            try:
                subject_run.claim()
            except Exception as error:
                self._messages.put(_ClaimError(subject_run.run_id, error))
            else:
                self._messages.put(subject_run)

        self._claimers.submit(claim_run)

    def _join_claimed_runs(self) -> Iterator[SubjectEvent]:
        while self._claimed and self._trainer.num_free_slots:
            subject_run = self._claimed.pop(0)
            try:
                if (subject_outcome := subject_run.find_earlier_outcome()) is not None:
                    self._begin_finishing_run(subject_run, subject_outcome, 0)
                    continue
                prior_set = self._open_priors(subject_run.job)
                subject = subject_run.join(self._trainer, self._components, self._model, prior_set)
            except Exception as error:
                self._begin_abandoning_run(subject_run, error, 0)
                continue
            self._runs[subject] = subject_run
            yield SubjectEvent(subject_run.run_id, "joined", subject.step)

    def _open_priors(self, job: WorkerJob) -> PriorSet | None:
        """Class images of a run, which those share that are trained on the same."""
        if not job.num_priors:
            return None
        prior_set_key = job.priors_uri, job.num_priors
        if prior_set_key not in self._prior_sets:
            if len(self._prior_sets) >= _KEPT_PRIOR_SETS:
                self._prior_sets.pop(next(iter(self._prior_sets)))
            self._prior_sets[prior_set_key] = open_priors(job)
        return self._prior_sets[prior_set_key]

    def _step(self) -> Iterator[SubjectEvent]:
        step_result = self._trainer.step()
        outcomes_by_subject: dict[SlotSubject, SubjectEnd | Exception | None] = dict(
            step_result.failures
        )
        if step_result.values:
            values_per_subject = torch.stack(list(step_result.values.values())).tolist()
            for subject, losses_and_grad_norm in zip(
                step_result.values, values_per_subject, strict=True
            ):
                try:
                    outcomes_by_subject[subject] = self._runs[subject].process_finished_step(
                        subject, losses_and_grad_norm
                    )
                except Exception as error:  # of this subject's run alone
                    outcomes_by_subject[subject] = error
        for subject, subject_outcome in outcomes_by_subject.items():
            if subject_outcome is None:
                continue
            self._trainer.leave(subject)
            subject_run = self._runs.pop(subject)
            yield SubjectEvent(subject_run.run_id, "trained", subject.step)
            if isinstance(subject_outcome, Exception):
                self._begin_abandoning_run(subject_run, subject_outcome, subject.step)
            else:
                self._begin_finishing_run(subject_run, subject_outcome, subject.step)

    def _begin_finishing_run(self, run: SubjectRun, subject_outcome: SubjectEnd, step: int) -> None:
        self._num_ending += 1

        def finish_run() -> None:
            try:
                run.finish(subject_outcome, self._make_bundle)
            except Exception as error:
                self._messages.put(SubjectEvent.of_failure(run.run_id, step, error))
            else:
                self._messages.put(SubjectEvent(run.run_id, subject_outcome, step))

        self._enders.submit(finish_run)

    def _begin_abandoning_run(self, run: SubjectRun, error: Exception, step: int) -> None:
        self._num_ending += 1

        def finish_failed_run() -> None:
            run.abandon()
            self._messages.put(SubjectEvent.of_failure(run.run_id, step, error))

        self._enders.submit(finish_failed_run)

    def _make_bundle(self, job: WorkerJob, checkpoint: LastLocalCheckpoint | None) -> None:
        is_dora = parse_config(job.config, job.run_uri, []).train.lora.dora

        def copy_components_for_adapters(directory: Path) -> Components:
            network = copy_network_without_memory(self._components.denoiser, shares_weights=is_dora)
            return replace(self._components, denoiser=network)

        self._export(job, checkpoint, copy_components_for_adapters)


def _load_frozen_components(directory: Path, precision: str, device: torch.device) -> Components:
    """All parts, of which nothing is trained, where they encode images and captions."""
    components = load_components(directory)
    for network in components.networks.values():
        network.requires_grad_(False)
    cast_untrainable_encoders(components, precision)
    for network in (components.vae, *components.text_encoders.values()):
        network.to(choose_fitting_device(network, device))
    gc.collect()
    return components
