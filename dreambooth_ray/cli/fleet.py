"""`dreambooth fleet`: many subjects, trained in turns of their owners."""

import sys
from pathlib import Path
from typing import Annotated

import typer

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def fleet(
    subjects: Annotated[Path, typer.Argument(help="YAML: recipe, subjects, parallel, retries")],
) -> None:
    """Train many subjects, owners in turns; start it again and it goes on where it stood."""
    from rich.console import Console
    from rich.table import Table

    from cluster.fleet_plan import load_fleet
    from cluster.fleet_run import run_fleet

    entries = run_fleet(load_fleet(subjects), lambda line: print(line, file=sys.stderr, flush=True))
    table = Table("subject", "owner", "state", "tries", "seconds", "note", title="The fleet")
    for entry in entries:
        words = (entry.state, str(entry.tries), f"{entry.seconds:.0f}", entry.note)
        table.add_row(entry.subject.id, entry.subject.owner, *words)
    Console().print(table)
    if any(entry.state == "failed" for entry in entries):
        sys.exit(1)
