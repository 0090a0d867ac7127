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
from cluster.session import connection, session
from cluster.slot_fleet import train_in_slots
from dreambooth_ray import pipeline
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import DataError
from dreambooth_ray.preparation import PreparedRun, fit_into_memory, prepare_run
from dreambooth_ray.runs import is_finished, open_run
from dreambooth_ray.storage.catalog import publish_run

# Between looks at the queue while all tasks go on.
_WAIT_S = 2.0


def run_fleet(fleet: FleetConfig, say: Callable[[str], None]) -> list[FleetEntry]:
    """Train every subject that has no bundle yet; returns all entries in the file's order.

    raises: ConfigError or DataError for the first subject that can't be trained, before any is;
        with slots, photographs that can't be used are the end of their subject alone
    """
    refuse_deadlines(fleet)
    entries = [FleetEntry(s.id, s.owner, s.priority) for s in fleet.subjects]
    prepared = _prepare(fleet, entries, say)
    # Nothing is wrong with any of them: now photographs go where every host can read them.
    portable = {
        name: replace(run, config=make_portable_config(run.config))
        for name, run in prepared.items()
    }
    usable = [entry for entry in entries if entry.state == "waiting"]
    for entry in usable:
        name = entry.id
        # From now on the run says what it uses, though its turn may come days later: nobody
        # collects that as garbage. Of one that is done it must be what it was.
        run = open_run(portable[name].config, inputs=prepared[name].inputs)
        if is_finished(run):
            entry.state, entry.note = "done", "was done before"
            publish_run(run)
            continue
        if prepared[name].config.prior.num_images:
            pipeline.note_prior_use(prepared[name], run)
    waiting = [e for e in usable if e.state == "waiting"]
    if waiting:
        with _start_ray(fleet, prepared[waiting[0].id].config):
            generate_priors([prepared[e.id] for e in waiting], say, {})
            if fleet.slots:
                waiting = train_in_slots(fleet, waiting, portable, say)
            run_queue(
                FleetQueue(waiting, fleet.parallel, fleet.retries),
                lambda e: start_training(portable[e.id].config),
                wait_for_first,
                read_end,
                say,
            )
    return entries


def _prepare(
    fleet: FleetConfig, entries: list[FleetEntry], say: Callable[[str], None]
) -> dict[str, PreparedRun]:
    """By subject's id, of those that can be trained."""
    configs = load_configurations(fleet)
    prepared = {}
    for entry in entries:
        name = entry.id
        try:
            prepared[name] = fit_into_memory(prepare_run(configs[name], QuietDisplay()), say)
        except DataError as error:
            if not fleet.slots:
                raise
            entry.state, entry.note = "failed", str(error)
            say(f"{name}: failed {error}")
    return prepared


def _start_ray(fleet: FleetConfig, config: Config) -> AbstractContextManager[None]:
    """Ray for the whole fleet. config: of any subject"""
    if not fleet.slots:
        return session(config)
    num_processes = max(config.processes, fleet.parallel + config.prior.span.max)
    return connection(config.cluster, num_processes)


def generate_priors(
    prepared: list[PreparedRun], say: Callable[[str], None], counts: dict[str, int]
) -> None:
    """Each set of class images once, however many subjects share it, before anybody needs it.

    counts: images of each set that are there, by its digest; those that are made are added
    """
    for subject in prepared:
        if subject.config.prior.num_images:
            request = pipeline.plan_priors(subject, subject.config.prior.num_images)
            digest = request.spec.digest
            if request.count > counts.get(digest, 0):
                say(f"class images: {', '.join(subject.config.class_prompts)}")
                pipeline.generate_missing_priors(subject, request, QuietDisplay())
                counts[digest] = request.count


def start_training(config: Config) -> Any:
    """Train a subject by itself; returns the handle of its task. config: with portable paths"""
    return _train_subject.remote(dump_config(config), dict(config.storage.options))


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _train_subject(text: str, storage_options: dict[str, Any]) -> bool:
    """One subject from wherever its run stands to its bundle; False if somebody has stopped it."""
    config = parse_config(text, "the fleet", [])
    # They may be keys, and are in no text.
    storage = config.storage.model_copy(update={"options": storage_options})
    config = config.model_copy(update={"storage": storage})
    display = QuietDisplay()
    prepared = prepare_run(config, display)
    run = open_run(config, inputs=prepared.inputs)
    # A try whose host was given up may show signs of life for a while.
    pipeline.train(prepared, run, display, patience_s=2 * config.cluster.lease_s)
    return is_finished(run)


def wait_for_first(handles: Iterable[Any]) -> Any | None:
    """The first of these tasks to end; None after a while."""
    finished, _ = ray.wait(list(handles), num_returns=1, timeout=_WAIT_S)
    return finished[0] if finished else None


def read_end(handle: Any) -> TryEnd:
    """How a task has ended."""
    try:
        return TryEnd("done") if ray.get(handle) else TryEnd("stopped", "as it was asked to")
    except ray.exceptions.RayTaskError as error:
        return TryEnd.of_error(error.cause)
    except ray.exceptions.RayError as error:
        return TryEnd("failed", f"{type(error).__name__}: the task's host or process is gone")
