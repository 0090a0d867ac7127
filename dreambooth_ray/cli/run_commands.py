"""Verbs for runs on clusters: submit, watch, logs, stop, ls."""

import sys
import time
from collections.abc import Mapping
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
from dreambooth_ray.errors import ConfigError, StorageError, describe_error

if TYPE_CHECKING:
    from cluster.cluster_registry import ClusterEntry
    from cluster.kubernetes_runs import KubernetesRuns
    from cluster.ray_jobs import RayJobs, RunJob

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

Cluster = Annotated[str, typer.Option("--cluster", help="name in the clusters file")]
K8s = Annotated[bool, typer.Option("--k8s", help="instead of a cluster: by kubectl")]
RunId = Annotated[str, typer.Argument(help="run id, as submit printed it")]
NAMESPACE = "dreambooth"
Namespace = Annotated[
    str, typer.Option(help=f"with --k8s: {NAMESPACE} if not given", show_default=False)
]
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
    namespace: Namespace = "",
    apply: Annotated[bool, typer.Option("--apply", help="with --k8s: kubectl apply")] = False,
) -> None:
    """Start a run on a cluster; prints its run id at once. The same run is started once."""
    from dreambooth_ray.config.load import load_config

    _refuse_unused_options({"--image": image, "--apply": apply}, cluster, namespace, k8s=k8s)
    config = load_config(recipe, overrides or [])
    if k8s:
        from cluster.kubernetes_runs import KubernetesRuns
        from cluster.rayjob import format_rayjob, refuse_pod_settings

        namespace = namespace or NAMESPACE
        # First: what pods can't use is not looked for on this machine either.
        refuse_pod_settings(config, image, namespace)
        if check:
            refuse_fatal_findings(config, None, is_elsewhere=True)
        if apply:
            print(KubernetesRuns(namespace).submit(config, image).run_id)
        else:
            print(format_rayjob(config, image, namespace))
        return
    cluster_entry, job_client = _connect_to_cluster(cluster, clusters)
    config = fit_memory(config, cluster_entry)
    if check:
        refuse_fatal_findings(config, cluster_entry)
    print(job_client.submit(config).run_id)


def _refuse_unused_options(
    pod_options: Mapping[str, object], cluster: str, namespace: str, *, k8s: bool
) -> None:
    """pod_options: of this verb, by name, that mean nothing without pods"""
    if k8s and cluster:
        raise ConfigError(
            f"--cluster={cluster!r} and --k8s are two places for one run; leave out one of them"
        )
    pod_option_values = {"--namespace": namespace, **pod_options}
    unused_options = [name for name, value in pod_option_values.items() if value]
    if unused_options and not k8s:
        raise ConfigError(
            f"{', '.join(unused_options)} is for pods alone; add --k8s, or leave it out"
        )


def watch(
    run: RunId,
    cluster: Cluster = "",
    k8s: K8s = False,
    namespace: Namespace = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """Show a run's progress until it ends; exit code 1 if it fails. Stop watching at will."""
    from cluster.progress import watch_run

    job_client, price_an_hour = _open_runs_with_price(cluster, clusters, namespace, k8s=k8s)
    run_outcome = watch_run(
        job_client, job_client.get(run), price_an_hour, lambda line: print(line, flush=True)
    )
    print(run_outcome)
    if run_outcome.startswith("failed"):
        sys.exit(1)


def logs(
    run: RunId,
    cluster: Cluster = "",
    k8s: K8s = False,
    namespace: Namespace = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """Print what a run's newest job has printed."""
    job_client, _ = _open_runs_with_price(cluster, clusters, namespace, k8s=k8s)
    print(job_client.logs(job_client.get(run)), end="")


def stop(
    run: RunId,
    cluster: Cluster = "",
    k8s: K8s = False,
    namespace: Namespace = "",
    now: Annotated[bool, typer.Option("--now", help="without a last checkpoint")] = False,
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """Let a run checkpoint and end; `dreambooth submit` or `resume` with its cluster goes on."""
    job_client, _ = _open_runs_with_price(cluster, clusters, namespace, k8s=k8s)
    job = job_client.get(run)
    if not job_client.is_active(job):
        print(f"{run} does not run: {job_client.state(job)}")
    elif not job_client.has_begun(job):
        job_client.kill(job)
        print(f"{run} had not begun and was taken back")
    elif now:
        job_client.kill(job)
        print(f"{run} was killed; it goes on from its newest checkpoint")
    else:
        print(f"{run} {_stop_job(job_client, job)}")


def _stop_job(job_client: "RayJobs | KubernetesRuns", job: "RunJob") -> str:
    """Returns what came of it."""
    from dreambooth_ray.storage.store import Store
    from dreambooth_ray.training.stop_request import is_stop_requested, request_stop

    run_store, deadline = Store(job.run_uri), time.monotonic() + _STOP_TIMEOUT_S
    while job_client.is_active(job):
        if time.monotonic() > deadline:
            job_client.kill(job)
            return f"did not end within {_STOP_TIMEOUT_S:.0f} s and was killed"
        try:
            # A driver that starts forgets what was asked of the one before.
            if not is_stop_requested(run_store):
                request_stop(run_store)
        except (StorageError, OSError) as error:
            raise StorageError(
                f"{job.run_uri} does not answer from here, where a run hears that it is to stop "
                f"({describe_error(error)}); --now ends it without a last checkpoint"
            ) from error
        time.sleep(1.0)
    return "stopped"


def ls(
    cluster: Annotated[str, typer.Option(help="runs of this cluster, newest first")] = "",
    storage: Annotated[str, typer.Option(help="instead of a cluster: all runs in storage")] = "",
    k8s: K8s = False,
    namespace: Namespace = "",
    filter: Annotated[
        str, typer.Option("--filter", "--subject", help="part of a run id, or a pattern with *")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="runs at most")] = 50,
    after: Annotated[str, typer.Option(help="run id to go on after: the last one shown")] = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """List runs of a cluster or a storage: run id, state, step of the checkpoint, URI."""
    from dreambooth_ray.run_listing import select_run_page, summarize_runs
    from dreambooth_ray.storage import paths
    from dreambooth_ray.storage.store import Store

    if not (storage or cluster or k8s):
        raise ConfigError(
            "ls lists a cluster, pods or a storage; give --cluster NAME, --k8s or --storage URI"
        )
    if storage and (cluster or k8s):
        raise ConfigError(f"--storage={storage!r} and runs of a cluster are two lists; give one")
    if storage:
        _refuse_unused_options({}, "", namespace, k8s=False)
        storage_store = Store(storage)
        run_uris = {
            run_id: f"{storage_store.uri}/{paths.run(run_id)}"
            for run_id in storage_store.names("runs")
        }
        job_states_by_run = dict.fromkeys(run_uris.values(), "unfinished")
    else:
        run_jobs = _open_runs_with_price(cluster, clusters, namespace, k8s=k8s)[0].runs()
        run_uris = {job.run_id: job.run_uri for job in run_jobs}
        job_states_by_run = {job.run_uri: job.state for job in run_jobs}
    run_ids, has_more = select_run_page(run_uris, filter, after, limit)
    run_summaries = summarize_runs(
        [run_uris[run_id] for run_id in run_ids], job_states_by_run.__getitem__
    )
    for run_id, run_summary in zip(run_ids, run_summaries, strict=True):
        print(f"{run_id}\t{run_summary.state}\tcheckpoint {run_summary.step}\t{run_uris[run_id]}")
    if has_more:
        print(f"more: --after {run_ids[-1]}", file=sys.stderr)


def resume_on(run: str, cluster: str, clusters: Path, namespace: str, *, k8s: bool) -> str:
    """Take a run up again on a cluster; returns its run id."""
    job_client, _ = _open_runs_with_price(cluster, clusters, namespace, k8s=k8s)
    return job_client.resume(run).run_id


def _open_runs_with_price(
    cluster: str, clusters: Path, namespace: str, *, k8s: bool
) -> "tuple[RayJobs | KubernetesRuns, float | None]":
    """The runs of a cluster, or of pods; and what an hour of it costs, where that is known."""
    _refuse_unused_options({}, cluster, namespace, k8s=k8s)
    if k8s:
        from cluster.kubernetes_runs import KubernetesRuns

        return KubernetesRuns(namespace or NAMESPACE), None
    cluster_entry, job_client = _connect_to_cluster(cluster, clusters)
    return job_client, cluster_entry.price_an_hour


def _connect_to_cluster(cluster: str, clusters: Path) -> "tuple[ClusterEntry, RayJobs]":
    from cluster.cluster_registry import find_cluster
    from cluster.ray_jobs import RayJobs

    if not cluster:
        raise ConfigError(
            "--cluster is not given; name one of the clusters file, or give --k8s for pods"
        )
    cluster_entry = find_cluster(cluster, clusters)
    return cluster_entry, RayJobs(cluster_entry)
