"""`dreambooth fleet`: many subjects, trained in turns of their owners; and their queue."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from dreambooth_ray.cli.preflight import CLUSTERS_FILE, Clusters
from dreambooth_ray.errors import CapacityError

if TYPE_CHECKING:
    from cluster.fleet_jobs import RayFleetJobs

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

_STOP_TIMEOUT_S = 60.0
Cluster = Annotated[str, typer.Option("--cluster", help="name in the clusters file")]
Storage = Annotated[str, typer.Option("--storage", help="as storage.uri of the subjects")]


class _FleetGroup(TyperGroup):
    """`fleet FILE` trains a file's subjects, whatever else there is to do with fleets."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["train", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="fleet",
    cls=_FleetGroup,
    help="Many subjects: `fleet FILE` trains those of a file; the verbs are of a queue in storage.",
    no_args_is_help=True,
)


@app.command()
def train(
    subjects: Annotated[
        Path, typer.Argument(help="YAML: recipe, subjects, parallel, slots, retries")
    ],
) -> None:
    """Train a file's subjects, owners in turns; start it again and it goes on where it stood."""
    from cluster.fleet_plan import load_fleet

    fleet_plan = load_fleet(subjects)
    from cluster.fleet_run import run_fleet

    _show_entries(run_fleet(fleet_plan, _say))


@app.command()
def add(
    subjects: Annotated[Path, typer.Argument(help="YAML, as of `fleet FILE`")],
) -> None:
    """Put a file's subjects into the queue of their storage; `fleet run` trains them."""
    from cluster.fleet_plan import load_fleet

    fleet_plan = load_fleet(subjects)
    from cluster.fleet_store import add_subjects

    add_subjects(fleet_plan, _say)


@app.command()
def run(
    storage: Storage,
    slots: Annotated[int, typer.Option(min=0, help="as in a fleet's file")] = 8,
    parallel: Annotated[
        str, typer.Option(help="workers, as in a fleet's file; 1-8: as many as what waits takes")
    ] = "1",
    retries: Annotated[int, typer.Option(min=0, help="tries more for a subject that fails")] = 2,
    budget: Annotated[
        int, typer.Option(min=0, help="of one owner's, trained at once; 0 is no limit")
    ] = 0,
    idle_s: Annotated[
        float, typer.Option(min=0, help="with --parallel MIN-MAX: an idle worker leaves after it")
    ] = 60.0,
    stay: Annotated[bool, typer.Option("--stay", help="wait for more once nothing waits")] = False,
    cluster: Annotated[str, typer.Option(help="as a job there; name in the clusters file")] = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """Train what waits in a storage's queue, until nothing does; several may run at once.

    With --cluster as a job of that cluster, whose name is printed at once.
    """
    from cluster.fleet_settings import FleetSettings, parse_worker_range

    min_workers, max_workers = parse_worker_range(parallel, slots)
    fleet_settings = FleetSettings(
        storage, slots, min_workers, max_workers, retries, budget or None, idle_s=idle_s, stays=stay
    )
    if cluster:
        from cluster.fleet_jobs import refuse_local_storage

        # First: then nobody has to be asked.
        refuse_local_storage(storage)
        print(_connect_to_fleets(cluster, clusters).start(fleet_settings).name)
        return
    from cluster.fleet_runner import FleetRunner

    _show_entries(FleetRunner(fleet_settings, _say).run())


@app.command()
def logs(storage: Storage, cluster: Cluster, clusters: Clusters = CLUSTERS_FILE) -> None:
    """Print what the newest job of a storage's fleet has printed."""
    fleet_job_client = _connect_to_fleets(cluster, clusters)
    print(fleet_job_client.logs(fleet_job_client.get(storage)), end="")


@app.command()
def stop(storage: Storage, cluster: Cluster, clusters: Clusters = CLUSTERS_FILE) -> None:
    """End a storage's fleet on a cluster; `fleet run` goes on from the last checkpoints."""
    fleet_job_client = _connect_to_fleets(cluster, clusters)
    fleet_job = fleet_job_client.get(storage)
    if not fleet_job_client.is_active(fleet_job):
        print(f"{fleet_job.name} does not run: {fleet_job_client.state(fleet_job)}")
        return
    fleet_job_client.kill(fleet_job)
    stop_deadline_s = time.monotonic() + _STOP_TIMEOUT_S
    while fleet_job_client.is_active(fleet_job):
        if time.monotonic() > stop_deadline_s:
            raise CapacityError(
                f"{fleet_job.name} did not end within {_STOP_TIMEOUT_S:.0f} s; try again"
            )
        time.sleep(0.5)
    print(f"{fleet_job.name} stopped")


def _connect_to_fleets(cluster: str, clusters: Path) -> "RayFleetJobs":
    from cluster.cluster_registry import find_cluster
    from cluster.fleet_jobs import RayFleetJobs

    return RayFleetJobs(find_cluster(cluster, clusters))


@app.command(name="ls")
def list_subjects(
    storage: Storage,
    state: Annotated[
        Literal["waiting", "running", "ended"], typer.Option(help="which of them")
    ] = "waiting",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="subjects at most")] = 50,
    after: Annotated[str, typer.Option(help="to go on after: what the last page said")] = "",
) -> None:
    """List subjects in a storage's queue: id, how it stands, group, owner or reason."""
    from cluster.fleet_store import FleetStore
    from dreambooth_ray.queue.work_records import ended_mark_name

    fleet_store = FleetStore(storage)
    fleet_store.refuse_empty_storage()
    page_cursors: list[str] = []
    if state == "ended":
        for subject_group, ended_work_record in fleet_store.list_ended(after, limit):
            print(
                ended_work_record.id, ended_work_record.state, subject_group, ended_work_record.note
            )
            page_cursors.append(f"{subject_group}/{ended_mark_name(ended_work_record)}")
    else:
        for subject_group, queue_entry in fleet_store.list_unfinished_works(state, after, limit):
            print(queue_entry.id, state, subject_group, queue_entry.owner)
            page_cursors.append(f"{subject_group}/{queue_entry.name}")
    if len(page_cursors) == limit:
        print(f"more: --after {page_cursors[-1]}", file=sys.stderr)


@app.command()
def cancel(
    subject: Annotated[str, typer.Argument(help="its id")],
    storage: Storage,
) -> None:
    """Take a subject out of the queue, or end its training with a checkpoint."""
    from cluster.fleet_store import FleetStore

    cancellation_texts = {
        "cancelled": "cancelled",
        "asked": "is being trained, and ends at its next step",
        "over": "is over already",
    }
    print(f"{subject}: {cancellation_texts[FleetStore(storage).cancel(subject)]}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show_entries(entries: list[Any]) -> None:
    """entries: FleetEntry"""
    from rich.console import Console
    from rich.table import Table

    fleet_table = Table("subject", "owner", "state", "tries", "seconds", "note", title="The fleet")
    for fleet_entry in entries:
        progress_cells = (
            fleet_entry.state,
            str(fleet_entry.tries),
            f"{fleet_entry.seconds:.0f}",
            fleet_entry.note,
        )
        fleet_table.add_row(fleet_entry.id, fleet_entry.owner, *progress_cells)
    Console().print(fleet_table)
    if any(fleet_entry.state == "failed" for fleet_entry in entries):
        sys.exit(1)
