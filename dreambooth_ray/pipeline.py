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

from dreambooth_ray.bundles.worker_export import export_by_task, try_export_local_checkpoint
from dreambooth_ray.config.load import dump_config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.preparation import Display, PreparedRun
from dreambooth_ray.priors.own_class_photographs import ClassImageFolder
from dreambooth_ray.priors.prior_generation import (
    PriorSetRequest,
    cluster_has_room,
    generate_priors,
    open_prior_set,
)
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_stream import PriorStream
from dreambooth_ray.runs import with_absolute_paths
from dreambooth_ray.storage import fence, manifest, paths
from dreambooth_ray.storage.lease import LeaseExpiredError
from dreambooth_ray.storage.lease_keeper import LeaseKeeper
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import publish_run
from dreambooth_ray.training import driver
from dreambooth_ray.training.run_state import RunState, read_run_state
from dreambooth_ray.training.stop_request import clear_stop_request
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.step_evaluator import MakeStepEvaluator


def plan_priors(prepared: PreparedRun, count: int) -> PriorSetRequest:
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
        return PriorSetRequest(spec, count, prepared.directory)
    return PriorSetRequest(
        spec,
        min(count, len(class_image_folder)),
        prepared.directory,
        lambda number: class_image_folder.read_chunk(
            spec.list_chunk_image_positions(number), spec.chunk_shape(number)
        ),
    )


def generate_missing_priors(
    prepared: PreparedRun, request: PriorSetRequest, display: Display
) -> Store:
    """Generate the class images that are missing; returns their store."""
    config = prepared.config
    storage = Store(config.storage.uri)
    return generate_priors(
        request, storage, config.prior, config.cluster, display.show_prior_progress
    )


def record_used_prior_set(prepared: PreparedRun, run: Store) -> None:
    """Write down which set of class images a run uses, or is going to."""
    prior_request = plan_priors(prepared, prepared.config.prior.num_images)
    run.write(paths.PRIOR_USE, json.dumps({"set": prior_request.spec.digest}).encode())


def train(prepared: PreparedRun, run: Store, display: Display, patience_s: float = 0.0) -> None:
    """Class images, training, bundle: from wherever the run stands to its end.

    patience_s: how long to wait for another process that works on the same run, or did
    raises: StorageError if it still does
    """
    lease_s, max_failures = prepared.config.cluster.lease_s, prepared.config.cluster.max_failures
    for num_failures in range(max_failures + 1):
        try:
            with fence.keep_lease(run, lease_s, patience_s, display.say) as run_lease:
                _train_and_bundle(prepared, run, display, run_lease)
            return
        except LeaseExpiredError as error:
            if num_failures == max_failures:
                raise
            # Frozen or cut off, and perhaps followed: whoever holds the run now is heard of here.
            display.say(f"WARNING: {error}; trying to take the run up again")


def _train_and_bundle(
    prepared: PreparedRun, run: Store, display: Display, lease: LeaseKeeper
) -> None:
    fence.record_resumed_step(run, lease.number)
    clear_stop_request(run)
    # Each turn but the last discards a damaged checkpoint, and no run keeps many.
    while True:
        run_state = _train_to_end(prepared, run, display, lease)
        lease.check()
        if not run_state.is_trained:
            display.say(
                f"stopped at step {run_state.committed_step}; `dreambooth resume` goes on from "
                "there"
            )
            return
        try:
            if not run_state.is_bundled:
                export_by_task(with_absolute_paths(prepared.config), prepared.directory, run)
            publish_run(run)
            return
        except CheckpointError as error:
            if not _discard_damaged_checkpoints(run, run_state, display):
                raise error from None


def _train_to_end(
    prepared: PreparedRun, run: Store, display: Display, lease: LeaseKeeper
) -> RunState:
    """Train until the checkpoint of the last step is there, or somebody asks the run to stop."""
    config = prepared.config
    with _evaluate_and_sample_checkpoints(prepared, run, lease) as make_evaluator:
        run_state = read_run_state(run, config)
        if not run_state.is_trained:
            worker_hooks = driver.WorkerHooks(try_export_local_checkpoint, make_evaluator)
            _train_to_last_step(prepared, run, display, lease, worker_hooks)
    # Once more: the evaluations have come to their end as well.
    run_state = read_run_state(run, config)
    if not run_state.is_trained and run_state.reason != "stopped":
        raise CheckpointError(
            f"{run.uri}: the workers ended well and the last checkpoint is not there; "
            "`dreambooth resume` trains on from the newest one"
        )
    return run_state


def _discard_damaged_checkpoints(run: Store, run_state: RunState, display: Display) -> bool:
    """Discard the checkpoints a bundle would be made of, if they are damaged; whether one was.

    Judged anew by reading them once more: a download that was cut off is no damage.
    """
    has_discarded = False
    checkpoints = fence.read_history(run).checkpoints
    for step in {run_state.last_step, run_state.bundled_checkpoint_step} & checkpoints.keys():
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
def _evaluate_and_sample_checkpoints(
    prepared: PreparedRun, run: Store, lease: LeaseKeeper
) -> Iterator["MakeStepEvaluator | None"]:
    """Evaluate and sample checkpoints beside the block, as far as the configuration asks for it.

    Yields what a worker needs that evaluates between steps; None where none has to.
    """
    make_evaluator: MakeStepEvaluator | None = None
    config = with_absolute_paths(prepared.config)
    with ExitStack() as exit_stack:
        if config.sample.every and not config.train.holds_unsharded_weights:
            from dreambooth_ray.evaluation.checkpoint_sampler import (
                sample_checkpoints_during_training,
            )

            exit_stack.enter_context(
                sample_checkpoints_during_training(config, run, prepared.directory)
            )
        if config.choice.rule == "best":
            from dreambooth_ray.evaluation.checkpoint_evaluator import (
                evaluate_checkpoints_during_training,
            )

            make_evaluator = exit_stack.enter_context(
                evaluate_checkpoints_during_training(config, run, prepared.directory, lease.number)
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
        display.show_training_progress(run, config, run_job_workers)

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


def add_priors_to_job(job: WorkerJob, prepared: PreparedRun) -> WorkerJob:
    """The job with the set of class images that its run is trained on, which may be incomplete."""
    if not prepared.config.prior.num_images:
        return job
    prior_request = _plan_needed_priors(prepared)
    prior_set_store = open_prior_set(Store(prepared.config.storage.uri), prior_request.spec)
    return replace(job, priors_uri=prior_set_store.uri, num_priors=prior_request.count)


def _plan_needed_priors(prepared: PreparedRun) -> PriorSetRequest:
    """No more than the steps will use, and those kept for validation."""
    config = prepared.config
    num_images_in_steps = config.train.steps * config.train.batch_size
    # One of each shape at the least.
    num_trained_priors = min(
        config.num_class_images, max(num_images_in_steps, len(prepared.class_shapes))
    )
    num_priors = num_trained_priors + config.prior.num_images - config.num_class_images
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
    prior_request = _plan_needed_priors(prepared)
    prior_set_store = open_prior_set(Store(config.storage.uri), prior_request.spec)
    run.write(paths.PRIOR_USE, json.dumps({"set": prior_request.spec.digest}).encode())
    job = replace(job, priors_uri=prior_set_store.uri, num_priors=prior_request.count)
    # With room for all, actors and workers start together; else actors come first.
    starts_workers_with_actors = config.prior.stream and cluster_has_room(
        config.prior, config.cluster
    )
    with (
        lease.calling_on_loss(prior_request.stop.set),
        PriorStream(
            lambda: generate_missing_priors(prepared, prior_request, display),
            prior_request,
            prior_set_store,
            run,
            lease.number,
        ) as prior_stream,
    ):
        if not config.prior.stream:
            prior_stream.wait_for_all_chunks()
        elif not starts_workers_with_actors:
            prior_stream.wait_for_first_chunk()
        lease.check()
        run_workers(job)
