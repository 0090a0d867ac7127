"""Verbs for runs on clusters: submit, watch, logs, stop, ls."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.cli.preflight import (
    CLUSTERS_FILE,
    Clusters,
    Overrides,
    Recipe,
    fit_memory,
    refuse_fatal_findings,
)
from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from cluster.cluster_registry import ClusterEntry
    from cluster.ray_jobs import RayJobs

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

Cluster = Annotated[str, typer.Option("--cluster", help="name in the clusters file")]
RunId = Annotated[str, typer.Argument(help="run id, as submit printed it")]
NAMESPACE = "dreambooth"
_STOP_TIMEOUT_S = 180.0


def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="name in the clusters file")] = "",
    clusters: Clusters = CLUSTERS_FILE,
    check: Annotated[bool, typer.Option("--preflight/--no-preflight")] = True,
    k8s: Annotated[bool, typer.Option("--k8s", help="as a RayJob for Kubernetes")] = False,
    image: Annotated[
        str, typer.Option(help="with --k8s: image of the pods, NAME@sha256:DIGEST")
    ] = "",
    namespace: Annotated[
        str, typer.Option(help=f"with --k8s: {NAMESPACE} if not given", show_default=False)
    ] = "",
    apply: Annotated[bool, typer.Option("--apply", help="with --k8s: kubectl apply")] = False,
) -> None:
    """Start a run on a cluster; prints its run id at once. The same run is started once."""
    from dreambooth_ray.config.load import load_config

    _refuse_unused_options(cluster, image, namespace, k8s=k8s, apply=apply)
    config = load_config(recipe, overrides or [])
    if k8s:
        from cluster.rayjob import refuse_pod_settings, submit_rayjob

        namespace = namespace or NAMESPACE
        # First: what pods can't use is not looked for on this machine either.
        refuse_pod_settings(config, image, namespace)
        if check:
            refuse_fatal_findings(config, None, is_elsewhere=True)
        print(submit_rayjob(config, image, namespace, apply=apply))
        return
    entry, jobs = _connect_to_cluster(cluster, clusters)
    config = fit_memory(config, entry)
    if check:
        refuse_fatal_findings(config, entry)
    print(jobs.submit(config).run_id)


def _refuse_unused_options(
    cluster: str, image: str, namespace: str, *, k8s: bool, apply: bool
) -> None:
    if k8s and cluster:
        raise ConfigError(
            f"--cluster={cluster!r} and --k8s are two places for one run; leave out one of them"
        )
    options = {"--image": image, "--namespace": namespace, "--apply": apply}
    given = [name for name, value in options.items() if value]
    if given and not k8s:
        raise ConfigError(f"{', '.join(given)} is for pods alone; add --k8s, or leave it out")


def watch(run: RunId, cluster: Cluster, clusters: Clusters = CLUSTERS_FILE) -> None:
    """Show a run's progress until it ends; exit code 1 if it fails. Stop watching at will."""
    from cluster.progress import watch_run

    entry, jobs = _connect_to_cluster(cluster, clusters)
    outcome = watch_run(
        jobs, jobs.get(run), entry.price_an_hour, lambda line: print(line, flush=True)
    )
    print(outcome)
    if outcome.startswith("failed"):
        sys.exit(1)


def logs(run: RunId, cluster: Cluster, clusters: Clusters = CLUSTERS_FILE) -> None:
    """Print what a run's newest job has printed."""
    _, jobs = _connect_to_cluster(cluster, clusters)
    print(jobs.logs(jobs.get(run)), end="")


def stop(run: RunId, cluster: Cluster, clusters: Clusters = CLUSTERS_FILE) -> None:
    """Let a run checkpoint and end; `dreambooth submit` or `resume` with its cluster goes on."""
    from dreambooth_ray.storage.store import Store
    from dreambooth_ray.training.stop_request import request_stop

    _, jobs = _connect_to_cluster(cluster, clusters)
    job = jobs.get(run)
    if not jobs.is_active(job):
        print(f"{run} does not run: {jobs.state(job)}")
        return
    request_stop(Store(job.run_uri))
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while jobs.is_active(job):
        if time.monotonic() > deadline:
            jobs.kill(job)
            print(f"{run} did not end within {_STOP_TIMEOUT_S:.0f} s and was killed")
            return
        time.sleep(1.0)
    print(f"{run} stopped")


def ls(
    cluster: Annotated[str, typer.Option(help="runs of this cluster, newest first")] = "",
    storage: Annotated[str, typer.Option(help="instead of a cluster: all runs in storage")] = "",
    filter: Annotated[
        str, typer.Option("--filter", "--subject", help="part of a run id, or a pattern with *")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="runs at most")] = 50,
    after: Annotated[str, typer.Option(help="run id to go on after: the last one shown")] = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """List runs of a cluster or a storage: run id, state, step of the checkpoint, URI."""
    from dreambooth_ray.run_listing import select_page, summarize_runs
    from dreambooth_ray.storage import paths
    from dreambooth_ray.storage.store import Store

    if bool(cluster) == bool(storage):
        raise ConfigError("ls lists a cluster or a storage; give --cluster NAME or --storage URI")
    if storage:
        store = Store(storage)
        uris = {run_id: f"{store.uri}/{paths.run(run_id)}" for run_id in store.names("runs")}
        states_by_uri = dict.fromkeys(uris.values(), "unfinished")
    else:
        jobs = _connect_to_cluster(cluster, clusters)[1].runs()
        uris = {job.run_id: job.run_uri for job in jobs}
        states_by_uri = {job.run_uri: job.state for job in jobs}
    run_ids, has_more = select_page(uris, filter, after, limit)
    summaries = summarize_runs([uris[run_id] for run_id in run_ids], states_by_uri.__getitem__)
    for run_id, summary in zip(run_ids, summaries, strict=True):
        print(f"{run_id}\t{summary.state}\tcheckpoint {summary.step}\t{uris[run_id]}")
    if has_more:
        print(f"more: --after {run_ids[-1]}", file=sys.stderr)


def resume_on(run: str, cluster: str, clusters: Path) -> str:
    """Take a run up again on a cluster; returns its run id."""
    _, jobs = _connect_to_cluster(cluster, clusters)
    return jobs.resume(run).run_id


def _connect_to_cluster(cluster: str, clusters: Path) -> "tuple[ClusterEntry, RayJobs]":
    from cluster.cluster_registry import find_cluster
    from cluster.ray_jobs import RayJobs

    if not cluster:
        raise ConfigError("--cluster is not given; name one of the clusters file")
    entry = find_cluster(cluster, clusters)
    return entry, RayJobs(entry)
