"""The whole flow on one screen: photographs to a bundle.

    photos -> Subject -> PriorSet -> Checkpoint -> Bundle

Each stage is skipped when its committed result is there, so to resume is to run again.
What computes, a bundle's weights included, does so in Ray's workers: this process holds no model,
and may be on a small machine. It imports diffusers only to follow checkpoints (choice.rule=best,
samples of sharded weights).
"""

# ruff: noqa: PLC0415

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_ray.bundles.worker_export import export_by_task, export_in_worker
from dreambooth_ray.config.load import dump_config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.preparation import Display, PreparedRun
from dreambooth_ray.priors.class_folder import ClassImageFolder
from dreambooth_ray.priors.prior_generation import PriorRequest, generate_priors, has_room, open_set
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_stream import PriorStream
from dreambooth_ray.runs import with_absolute_paths
from dreambooth_ray.storage import fence, manifest, paths
from dreambooth_ray.storage.catalog import publish_run
from dreambooth_ray.storage.lease import LeaseExpiredError
from dreambooth_ray.storage.lease_keeper import LeaseKeeper
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import driver
from dreambooth_ray.training.run_state import RunState, read_run_state
from dreambooth_ray.training.stop_request import clear_stop_request
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.step_evaluator import MakeStepEvaluator


def plan_priors(prepared: PreparedRun, count: int) -> PriorRequest:
    """Which class images a configuration asks for, `count` of them."""
    config, prior_config = prepared.config, prepared.config.prior
    class_image_folder = (
        ClassImageFolder(Path(prior_config.folder)) if prior_config.folder else None
    )
    spec = PriorSpec(
        model_hash=model_hash(prepared.directory),
        prompts=config.class_prompts,
        params=None if class_image_folder else prior_config.sampling_params,
        size_px=config.train.side_px,
        seed=0 if class_image_folder else config.seed,
        chunk_size=prior_config.batch_size,
        folder_digest=class_image_folder.digest if class_image_folder else "",
        shapes=prepared.class_shapes,
    )
    if class_image_folder is None:
        return PriorRequest(spec, count, prepared.directory)
    return PriorRequest(
        spec,
        min(count, len(class_image_folder)),
        prepared.directory,
        lambda number: class_image_folder.read_chunk(
            spec.list_image_positions(number), spec.chunk_shape(number)
        ),
    )


def generate_missing_priors(
    prepared: PreparedRun, request: PriorRequest, display: Display
) -> Store:
    """Generate the class images that are missing; returns their store."""
    config = prepared.config
    store = Store(config.storage.uri)
    return generate_priors(request, store, config.prior, config.cluster, display.show_priors)


def note_prior_use(prepared: PreparedRun, run: Store) -> None:
    """Write down which set of class images a run uses, or is going to."""
    request = plan_priors(prepared, prepared.config.prior.num_images)
    run.write(paths.PRIOR_USE, json.dumps({"set": request.spec.digest}).encode())


def train(prepared: PreparedRun, run: Store, display: Display, patience_s: float = 0.0) -> None:
    """Class images, training, bundle: from wherever the run stands to its end.

    patience_s: how long to wait for another process that works on the same run, or did
    raises: StorageError if it still does
    """
    lease_s, max_failures = prepared.config.cluster.lease_s, prepared.config.cluster.max_failures
    for num_failures in range(max_failures + 1):
        try:
            with fence.keep_lease(run, lease_s, patience_s, display.say) as lease:
                _train_and_bundle(prepared, run, display, lease)
            return
        except LeaseExpiredError as error:
            if num_failures == max_failures:
                raise
            # Frozen or cut off, and perhaps followed: whoever holds the run now is heard of here.
            display.say(f"WARNING: {error}; trying to take the run up again")


def _train_and_bundle(
    prepared: PreparedRun, run: Store, display: Display, lease: LeaseKeeper
) -> None:
    fence.record_takeover(run, lease.number)
    clear_stop_request(run)
    # Each turn but the last discards a damaged checkpoint, and no run keeps many.
    while True:
        state = _train_to_end(prepared, run, display, lease)
        lease.check()
        if not state.is_trained:
            display.say(
                f"stopped at step {state.committed_step}; `dreambooth resume` goes on from there"
            )
            return
        try:
            if not state.is_bundled:
                export_by_task(with_absolute_paths(prepared.config), prepared.directory, run)
            publish_run(run)
            return
        except CheckpointError as error:
            if not _discard_damaged_checkpoints(run, state, display):
                raise error from None


def _train_to_end(
    prepared: PreparedRun, run: Store, display: Display, lease: LeaseKeeper
) -> RunState:
    """Train until the checkpoint of the last step is there, or somebody asks the run to stop."""
    config = prepared.config
    with _follow_checkpoints(prepared, run, lease) as make_evaluator:
        state = read_run_state(run, config)
        if not state.is_trained:
            worker_hooks = driver.WorkerHooks(export_in_worker, make_evaluator)
            _train_to_last_step(prepared, run, display, lease, worker_hooks)
    # Once more: the evaluations have come to their end as well.
    state = read_run_state(run, config)
    if not state.is_trained and state.reason != "stopped":
        raise CheckpointError(
            f"{run.uri}: the workers ended well and the last checkpoint is not there; "
            "`dreambooth resume` trains on from the newest one"
        )
    return state


def _discard_damaged_checkpoints(run: Store, state: RunState, display: Display) -> bool:
    """Discard the checkpoints a bundle would be made of, if they are damaged; whether one was.

    Judged anew by reading them once more: a download that was cut off is no damage.
    """
    has_discarded = False
    checkpoints = fence.read_history(run).checkpoints
    for step in {state.last_step, state.bundle_step} & checkpoints.keys():
        checkpoint = checkpoints[step]
        damage = manifest.find_damage(run, checkpoint.name)
        if damage is None:
            continue
        display.say(
            f"WARNING: the checkpoint of step {step} is damaged ({damage}). It is discarded, and "
            "these steps are trained again"
        )
        manifest.remove_artifact(run, checkpoint.name)
        run.remove_file(checkpoint.evaluation)
        has_discarded = True
    return has_discarded


@contextmanager
def _follow_checkpoints(
    prepared: PreparedRun, run: Store, lease: LeaseKeeper
) -> Iterator["MakeStepEvaluator | None"]:
    """Evaluate and sample checkpoints beside the block, as far as the configuration asks for it.

    Yields what a worker needs that evaluates between steps; None where none has to.
    """
    make_evaluator: MakeStepEvaluator | None = None
    config = with_absolute_paths(prepared.config)
    with ExitStack() as stack:
        if config.sample.every and not config.train.holds_unsharded_weights:
            from dreambooth_ray.evaluation.checkpoint_sampler import sample_checkpoints

            stack.enter_context(sample_checkpoints(config, run, prepared.directory))
        if config.choice.rule == "best":
            from dreambooth_ray.evaluation.checkpoint_evaluator import evaluate_checkpoints

            make_evaluator = stack.enter_context(
                evaluate_checkpoints(config, run, prepared.directory, lease.number)
            )
        yield make_evaluator


def _train_to_last_step(
    prepared: PreparedRun,
    run: Store,
    display: Display,
    lease: LeaseKeeper,
    hooks: driver.WorkerHooks,
) -> None:
    """From the newest checkpoint to the last step, or until somebody asks it to stop."""
    config, job = prepared.config, make_worker_job(prepared, run, lease.number)

    def run_workers(job: WorkerJob) -> None:
        run_job_workers = partial(
            driver.run_workers, job, config.cluster, run, lease, display.say, hooks
        )
        display.show_training(run, config, run_job_workers)

    if config.prior.num_images:
        _train_beside_priors(prepared, job, run, display, lease, run_workers)
    else:
        run_workers(job)


def make_worker_job(prepared: PreparedRun, run: Store, lease: int = 0) -> WorkerJob:
    """What a worker is told of a run, less its class images. lease: number of the run's"""
    config = prepared.config
    return WorkerJob(
        config=dump_config(with_absolute_paths(config)),
        run_uri=run.uri,
        model_directory=str(prepared.directory),
        storage_options=dict(config.storage.options),
        model_hash=model_hash(prepared.directory),
        lease=lease,
    )


def add_class_images(job: WorkerJob, prepared: PreparedRun) -> WorkerJob:
    """The job with the set of class images that its run is trained on, which may be incomplete."""
    if not prepared.config.prior.num_images:
        return job
    request = _plan_trained_priors(prepared)
    prior_store = open_set(Store(prepared.config.storage.uri), request.spec)
    return replace(job, priors_uri=prior_store.uri, num_priors=request.count)


def _plan_trained_priors(prepared: PreparedRun) -> PriorRequest:
    """No more than the steps will use, and those kept for validation."""
    config = prepared.config
    num_used = config.train.steps * config.train.batch_size
    # One of each shape at the least.
    num_trained = min(config.num_class_images, max(num_used, len(prepared.class_shapes)))
    num_priors = num_trained + config.prior.num_images - config.num_class_images
    return plan_priors(prepared, num_priors)


def _train_beside_priors(
    prepared: PreparedRun,
    job: WorkerJob,
    run: Store,
    display: Display,
    lease: LeaseKeeper,
    run_workers: Callable[[WorkerJob], None],
) -> None:
    """Train from the first class images on, while the rest are generated."""
    config = prepared.config
    request = _plan_trained_priors(prepared)
    prior_store = open_set(Store(config.storage.uri), request.spec)
    run.write(paths.PRIOR_USE, json.dumps({"set": request.spec.digest}).encode())
    job = replace(job, priors_uri=prior_store.uri, num_priors=request.count)
    # With room for all, actors and workers start together; else actors come first.
    start_together = config.prior.stream and has_room(config.prior, config.cluster)
    with (
        lease.calling_on_loss(request.stop.set),
        PriorStream(
            lambda: generate_missing_priors(prepared, request, display),
            request,
            prior_store,
            run,
            lease.number,
        ) as stream,
    ):
        if not config.prior.stream:
            stream.wait_all()
        elif not start_together:
            stream.wait_first()
        lease.check()
        run_workers(job)
