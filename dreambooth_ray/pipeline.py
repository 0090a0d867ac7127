"""The whole flow on one screen: photographs to a bundle.

    photos -> Subject -> PriorSet -> Checkpoint -> Bundle

Each stage is skipped when its committed result is there, so to resume is to run again.
What needs diffusers is imported by the stage that needs it: workers start meanwhile, and
whoever resumes a run does not wait for what it has no use for.
"""

# ruff: noqa: PLC0415

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.imports import imported_meanwhile, large_imports
from dreambooth_ray.models.source import model_hash
from dreambooth_ray.preparation import Display, Prepared
from dreambooth_ray.priors.class_folder import ClassImageFolder
from dreambooth_ray.priors.generation import PriorRequest, has_room, make_priors, open_set
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_stream import PriorStream
from dreambooth_ray.runs import located
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.lease import Lease
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import driver
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.checkpoint_selection import read_end, read_selection
from dreambooth_ray.training.early_stopping import last_step
from dreambooth_ray.training.metrics_log import read_metrics
from dreambooth_ray.training.stop_request import forget_stop, is_asked_to_stop
from dreambooth_ray.training.worker_job import WorkerJob

_EXPORT = "dreambooth_ray.export.bundle"


def order_priors(prepared: Prepared, count: int) -> PriorRequest:
    """Which class images a configuration asks for, `count` of them."""
    config, prior = prepared.config, prepared.config.prior
    folder = ClassImageFolder(Path(prior.folder), config.train.resolution) if prior.folder else None
    spec = PriorSpec(
        model_hash=model_hash(prepared.directory),
        prompts=config.class_prompts,
        solver="" if folder else prior.solver,
        num_inference_steps=0 if folder else prior.num_inference_steps,
        guidance_scale=0.0 if folder else prior.guidance_scale,
        size_px=config.train.resolution,
        seed=0 if folder else config.seed,
        chunk_size=prior.batch_size,
        folder_digest=folder.digest if folder else "",
    )
    if folder is None:
        return PriorRequest(spec, count, prepared.directory)
    return PriorRequest(
        spec,
        min(count, len(folder)),
        prepared.directory,
        lambda number: folder.chunk(spec.indices(number)),
    )


def draw_priors(prepared: Prepared, order: PriorRequest, display: Display) -> Store:
    """Draw the class images that are missing; returns their store."""
    config = prepared.config
    store = Store(config.storage.uri)
    return make_priors(order, store, config.prior, config.cluster, display.priors)


def train(prepared: Prepared, run: Store, display: Display, patience_s: float = 0.0) -> None:
    """Class images, training, bundle: from wherever the run stands to its end.

    patience_s: how long to wait for another process that works on the same run, or did
    raises: StorageError if it still does
    """
    with Lease(run, patience_s):
        _train(prepared, run, display)


def _train(prepared: Prepared, run: Store, display: Display) -> None:
    forget_stop(run)
    # Each turn but the last discards a damaged checkpoint, and no run keeps many.
    while True:
        if not _train_to_the_end(prepared, run, display):
            return
        with large_imports():
            from dreambooth_ray.export.bundle import export_bundle
        try:
            export_bundle(prepared.config, prepared.directory, run)
            return
        except CheckpointError as error:
            if not _discard_damaged(prepared.config, run, display):
                raise error from None


def _train_to_the_end(prepared: Prepared, run: Store, display: Display) -> bool:
    """Whether the checkpoint of the last step is there; not, if somebody asked the run to stop."""
    config = prepared.config
    with _judged(prepared, run):
        if _is_trained(config, run):
            return True
        # While workers train: what this process needs at the end.
        with imported_meanwhile(_EXPORT, lambda: run.exists(paths.METRICS)):
            _train_on(prepared, run, display)
        if is_asked_to_stop(run) and not _is_trained(config, run):
            at = (committed_steps(run)[-1:] or [0])[0]
            display.say(f"stopped at step {at}; `dreambooth resume` goes on from there")
            return False
        if not _is_trained(config, run):
            raise CheckpointError(
                f"{run.uri}: the workers ended well and the last checkpoint is not there; "
                "`dreambooth resume` trains on from the newest one"
            )
    return True


def _discard_damaged(config: Config, run: Store, display: Display) -> bool:
    """Discard the checkpoints a bundle would be made of, if they are damaged; whether one was.

    Judged anew by reading them once more: a download that was cut off is no damage.
    """
    last = committed_steps(run)[-1]
    best = read_selection(run).best if config.choice.rule == "best" else None
    found = False
    for step in {last, best} - {None}:
        problem = manifest.damage(run, paths.checkpoint(int(step or 0)))
        if problem is None:
            continue
        display.say(
            f"WARNING: the checkpoint of step {step} is damaged ({problem}). It is discarded, and "
            "these steps are trained again"
        )
        manifest.discard(run, paths.checkpoint(int(step or 0)))
        run.remove(paths.evaluation(int(step or 0)))
        found = True
    return found


def _judged(prepared: Prepared, run: Store) -> AbstractContextManager[None]:
    if prepared.config.choice.rule == "last":
        return nullcontext()
    from dreambooth_ray.evaluation.checkpoint_evaluator import evaluated_beside

    return evaluated_beside(located(prepared.config), run, prepared.directory)


def _is_trained(config: Config, run: Store) -> bool:
    """Whether the checkpoint of the last step is there."""
    return committed_steps(run)[-1:] == [last_step(config, read_metrics(run), read_end(run))]


def _train_on(prepared: Prepared, run: Store, display: Display) -> None:
    """From the newest checkpoint to the last step, or until somebody asks it to stop."""
    config = prepared.config
    job = WorkerJob(
        config=dump_config(located(config)),
        run_uri=run.uri,
        model_directory=str(prepared.directory),
        storage_options=dict(config.storage.options),
        model_hash=model_hash(prepared.directory),
    )
    if config.prior.count:
        _train_beside_priors(prepared, job, run, display)
    else:
        _fit(prepared, job, run, display)


def _fit(prepared: Prepared, job: WorkerJob, run: Store, display: Display) -> None:
    config = prepared.config

    def work() -> None:
        driver.train(job, config.cluster, run, display.say)

    display.training(run, config, work)


def _train_beside_priors(prepared: Prepared, job: WorkerJob, run: Store, display: Display) -> None:
    """Train from the first class images on, while the rest are drawn."""
    config = prepared.config
    # No more than the steps will look at.
    trained_on = min(config.num_class_images, config.train.steps * config.train.batch_size)
    wanted = trained_on + config.prior.count - config.num_class_images
    order = order_priors(prepared, wanted)
    priors = open_set(Store(config.storage.uri), order.spec)
    run.write(paths.PRIOR_USE, json.dumps({"set": order.spec.digest}).encode())
    job = replace(job, priors_uri=priors.uri, num_priors=order.count)
    # With a place for everybody, actors and workers start together; else actors come first.
    together = config.prior.stream and has_room(config.prior, config.cluster)
    with PriorStream(lambda: draw_priors(prepared, order, display), order, priors, run) as stream:
        if not config.prior.stream:
            stream.wait_all()
        elif not together:
            stream.wait_first()
        _fit(prepared, job, run, display)
