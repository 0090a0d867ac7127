"""A fleet carried out: class images once for all, then slots of shared batches, or a Ray task a
subject.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import ray

from cluster.fleet_plan import FleetConfig, load_configurations, refuse_deadlines
from cluster.fleet_queue import FleetEntry, FleetQueue, TryEnd, run_queue
from cluster.ray_jobs import make_portable_config
from cluster.session import ray_connection, session
from cluster.slot_fleet import train_in_slots
from dreambooth_ray import pipeline
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import DataError
from dreambooth_ray.preparation import PreparedRun, fit_into_memory, prepare_run
from dreambooth_ray.runs import is_finished, open_run
from dreambooth_ray.storage.version_catalog import publish_run

# Between looks at the queue while all tasks go on.
_WAIT_S = 2.0


def run_fleet(fleet: FleetConfig, say: Callable[[str], None]) -> list[FleetEntry]:
    """Train every subject that has no bundle yet; returns all entries in the file's order.

    raises: ConfigError or DataError for the first subject that can't be trained, before any is;
        with slots, photographs that can't be used are the end of their subject alone
    """
    refuse_deadlines(fleet)
    entries = [FleetEntry(s.id, s.owner, s.priority) for s in fleet.subjects]
    prepared_runs = _prepare_runs(fleet, entries, say)
    # Nothing is wrong with any of them: now photographs go where every host can read them.
    portable_runs = {
        subject_id: replace(prepared_run, config=make_portable_config(prepared_run.config))
        for subject_id, prepared_run in prepared_runs.items()
    }
    trainable_entries = [entry for entry in entries if entry.state == "waiting"]
    for entry in trainable_entries:
        subject_id = entry.id
        # From now on the run says what it uses, though its turn may come days later: nobody
        # collects that as garbage. Of one that is done it must be what it was.
        run_store = open_run(
            portable_runs[subject_id].config, inputs=prepared_runs[subject_id].inputs
        )
        if is_finished(run_store):
            entry.state, entry.note = "done", "was done before"
            publish_run(run_store)
            continue
        if prepared_runs[subject_id].config.prior.num_images:
            pipeline.record_used_prior_set(prepared_runs[subject_id], run_store)
    waiting_entries = [e for e in trainable_entries if e.state == "waiting"]
    if waiting_entries:
        with _start_ray(fleet, prepared_runs[waiting_entries[0].id].config):
            generate_priors([prepared_runs[e.id] for e in waiting_entries], say, {})
            if fleet.slots:
                waiting_entries = train_in_slots(fleet, waiting_entries, portable_runs, say)
            run_queue(
                FleetQueue(waiting_entries, fleet.parallel, fleet.retries),
                lambda e: start_training(portable_runs[e.id].config),
                wait_for_first,
                read_task_end,
                say,
            )
    return entries


def _prepare_runs(
    fleet: FleetConfig, entries: list[FleetEntry], say: Callable[[str], None]
) -> dict[str, PreparedRun]:
    """By subject's id, of those that can be trained."""
    configs = load_configurations(fleet)
    prepared_runs = {}
    for entry in entries:
        subject_id = entry.id
        try:
            prepared_runs[subject_id] = fit_into_memory(
                prepare_run(configs[subject_id], QuietDisplay()), say
            )
        except DataError as error:
            if not fleet.slots:
                raise
            entry.state, entry.note = "failed", str(error)
            say(f"{subject_id}: failed {error}")
    return prepared_runs


def _start_ray(fleet: FleetConfig, config: Config) -> AbstractContextManager[None]:
    """Ray for the whole fleet. config: of any subject"""
    if not fleet.slots:
        return session(config)
    num_processes = max(config.num_workers_and_actors, fleet.parallel + config.prior.span.max)
    return ray_connection(config.cluster, num_processes)


def generate_priors(
    prepared: list[PreparedRun], say: Callable[[str], None], counts: dict[str, int]
) -> None:
    """Each set of class images once, however many subjects share it, before anybody needs it.

    counts: images of each set that are there, by its digest; those that are made are added
    """
    for prepared_run in prepared:
        if prepared_run.config.prior.num_images:
            prior_request = pipeline.plan_priors(prepared_run, prepared_run.config.prior.num_images)
            prior_digest = prior_request.spec.digest
            if prior_request.count > counts.get(prior_digest, 0):
                say(f"class images: {', '.join(prepared_run.config.class_prompts)}")
                pipeline.generate_missing_priors(prepared_run, prior_request, QuietDisplay())
                counts[prior_digest] = prior_request.count


def start_training(config: Config) -> Any:
    """Train a subject by itself; returns the handle of its task. config: with portable paths"""
    return _train_subject.remote(dump_config(config), dict(config.storage.options))


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _train_subject(text: str, storage_options: dict[str, Any]) -> bool:
    """One subject from wherever its run stands to its bundle; False if somebody has stopped it."""
    config = parse_config(text, "the fleet", [])
    # They may be keys, and are in no text.
    storage_config = config.storage.model_copy(update={"options": storage_options})
    config = config.model_copy(update={"storage": storage_config})
    quiet_display = QuietDisplay()
    prepared_run = prepare_run(config, quiet_display)
    run_store = open_run(config, inputs=prepared_run.inputs)
    # A try whose host was given up may show signs of life for a while.
    pipeline.train(prepared_run, run_store, quiet_display, patience_s=2 * config.cluster.lease_s)
    return is_finished(run_store)


def wait_for_first(handles: Iterable[Any]) -> Any | None:
    """The first of these tasks to end; None after a while."""
    finished_tasks, _ = ray.wait(list(handles), num_returns=1, timeout=_WAIT_S)
    return finished_tasks[0] if finished_tasks else None


def read_task_end(handle: Any) -> TryEnd:
    """How a task has ended."""
    try:
        return TryEnd("done") if ray.get(handle) else TryEnd("stopped", "as it was asked to")
    except ray.exceptions.RayTaskError as error:
        return TryEnd.of_error(error.cause)
    except ray.exceptions.RayError as error:
        return TryEnd("failed", f"{type(error).__name__}: the task's host or process is gone")
