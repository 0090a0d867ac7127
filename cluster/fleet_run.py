"""A fleet carried out: class images once for all, then a Ray task a subject."""

from collections.abc import Callable, Iterable
from typing import Any

import ray

from cluster.fleet_plan import FleetConfig, FleetEntry, FleetQueue, dump_configurations, run_queue
from cluster.ray_jobs import make_portable_config
from cluster.session import session
from dreambooth_ray import pipeline
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.preparation import PreparedRun, fit_into_memory, prepare_run
from dreambooth_ray.runs import is_finished, open_run
from dreambooth_ray.storage.catalog import publish_run


def run_fleet(fleet: FleetConfig, say: Callable[[str], None]) -> list[FleetEntry]:
    """Train every subject that has no bundle yet; returns all entries in the file's order.

    raises: ConfigError or DataError for the first subject that can't be trained, before any is
    """
    configs = {
        name: parse_config(text, name, []) for name, text in dump_configurations(fleet).items()
    }
    prepared = {
        name: fit_into_memory(prepare_run(config, QuietDisplay()), say)
        for name, config in configs.items()
    }
    configs = {name: run.config for name, run in prepared.items()}
    # Nothing is wrong with any of them: now photographs go where every host can read them.
    config_texts = {
        name: dump_config(make_portable_config(config)) for name, config in configs.items()
    }
    entries = [FleetEntry(subject) for subject in fleet.subjects]
    for entry in entries:
        name = entry.subject.id
        # From now on the run says what it uses, though its turn may come days later: nobody
        # collects that as garbage. Of one that is done it must be what it was.
        run = open_run(parse_config(config_texts[name], name, []), inputs=prepared[name].inputs)
        if is_finished(run):
            entry.state, entry.note = "done", "was done before"
            publish_run(run)
            continue
        if configs[name].prior.num_images:
            pipeline.note_prior_use(prepared[name], run)
    queue = FleetQueue(entries, fleet.parallel, fleet.retries)
    waiting = [e for e in entries if e.state == "waiting"]
    if waiting:
        with session(configs[waiting[0].subject.id]):
            _generate_priors([prepared[e.subject.id] for e in waiting], say)
            run_queue(
                queue,
                lambda e: _train_subject.remote(config_texts[e.subject.id]),
                _wait_for_first,
                _describe_failure,
                say,
            )
    return entries


def _generate_priors(prepared: list[PreparedRun], say: Callable[[str], None]) -> None:
    """Each set of class images once, however many subjects share it, before anybody needs it."""
    digests: set[str] = set()
    for subject in prepared:
        if subject.config.prior.num_images:
            request = pipeline.plan_priors(subject, subject.config.prior.num_images)
            if request.spec.digest not in digests:
                digests.add(request.spec.digest)
                say(f"class images: {', '.join(subject.config.class_prompts)}")
                pipeline.generate_missing_priors(subject, request, QuietDisplay())


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _train_subject(text: str) -> None:
    """One subject from wherever its run stands to its bundle."""
    config = parse_config(text, "the fleet", [])
    display = QuietDisplay()
    prepared = prepare_run(config, display)
    run = open_run(config, inputs=prepared.inputs)
    # A try whose host was given up may show signs of life for a while.
    pipeline.train(prepared, run, display, patience_s=2 * config.cluster.lease_s)


def _wait_for_first(handles: Iterable[Any]) -> Any:
    finished, _ = ray.wait(list(handles), num_returns=1)
    return finished[0]


def _describe_failure(handle: Any) -> str | None:
    try:
        ray.get(handle)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return (
            str(cause) if isinstance(cause, DreamBoothError) else f"{type(cause).__name__}: {cause}"
        )
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: the task's host or process is gone"
    return None
