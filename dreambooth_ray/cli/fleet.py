"""`dreambooth fleet`: many subjects, trained in turns of their owners; and their queue."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

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

    fleet = load_fleet(subjects)
    from cluster.fleet_run import run_fleet

    _show_entries(run_fleet(fleet, _say))


@app.command()
def add(
    subjects: Annotated[Path, typer.Argument(help="YAML, as of `fleet FILE`")],
) -> None:
    """Put a file's subjects into the queue of their storage; `fleet run` trains them."""
    from cluster.fleet_plan import load_fleet

    fleet = load_fleet(subjects)
    from cluster.fleet_store import add_subjects

    add_subjects(fleet, _say)


@app.command()
def run(
    storage: Storage,
    slots: Annotated[int, typer.Option(min=0, help="as in a fleet's file")] = 8,
    parallel: Annotated[int, typer.Option(min=1, help="as in a fleet's file")] = 1,
    retries: Annotated[int, typer.Option(min=0, help="tries more for a subject that fails")] = 2,
    budget: Annotated[
        int, typer.Option(min=0, help="of one owner's, trained at once; 0 is no limit")
    ] = 0,
) -> None:
    """Train what waits in a storage's queue, until nothing does; several may run at once."""
    from cluster.fleet_worker import FleetWorker
    from dreambooth_ray.errors import ConfigError

    if 0 < slots < parallel:
        raise ConfigError(
            f"--slots={slots} can't be divided by --parallel={parallel} workers; give more slots, "
            "or fewer workers"
        )
    _show_entries(FleetWorker(storage, slots, parallel, retries, _say, budget or None).run())


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
    from dreambooth_ray.queue.work_records import end_name

    fleet_store = FleetStore(storage)
    fleet_store.refuse_empty()
    names: list[str] = []
    if state == "ended":
        for group, ended in fleet_store.list_ended(after, limit):
            print(ended.id, ended.state, group, ended.note)
            names.append(f"{group}/{end_name(ended)}")
    else:
        for group, mark in fleet_store.list_marks(state, after, limit):
            print(mark.id, state, group, mark.owner)
            names.append(f"{group}/{mark.name}")
    if len(names) == limit:
        print(f"more: --after {names[-1]}", file=sys.stderr)


@app.command()
def cancel(
    subject: Annotated[str, typer.Argument(help="its id")],
    storage: Storage,
) -> None:
    """Take a subject out of the queue, or end its training with a checkpoint."""
    from cluster.fleet_store import FleetStore

    words = {
        "cancelled": "cancelled",
        "asked": "is being trained, and ends at its next step",
        "over": "is over already",
    }
    print(f"{subject}: {words[FleetStore(storage).cancel(subject)]}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show_entries(entries: list[Any]) -> None:
    """entries: FleetEntry"""
    from rich.console import Console
    from rich.table import Table

    table = Table("subject", "owner", "state", "tries", "seconds", "note", title="The fleet")
    for entry in entries:
        words = (entry.state, str(entry.tries), f"{entry.seconds:.0f}", entry.note)
        table.add_row(entry.id, entry.owner, *words)
    Console().print(table)
    if any(entry.state == "failed" for entry in entries):
        sys.exit(1)
