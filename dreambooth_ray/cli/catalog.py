"""`dreambooth catalog`: which subjects endpoints know of."""

import sys
from typing import Annotated

import typer

from dreambooth_ray.cli.storage_argument import StorageArguments, open_storage
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.errors import DreamBoothError

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

app = typer.Typer(
    name="catalog", help="Which subjects in storage are served.", no_args_is_help=True
)


@app.command()
def rebuild(storage: StorageArguments = None) -> None:
    """Make it anew from the runs in storage: for those of earlier releases, or after an accident.

    Endpoints, commits and deletions may go on meanwhile.
    """
    from dreambooth_ray.storage.catalog import Catalog
    from dreambooth_ray.storage.catalog_rebuild import rebuild_catalog

    def show_progress(unit: str, num_done: int, total: int) -> None:
        print(f"{unit}: {num_done} of {total}", file=sys.stderr, flush=True)

    report = rebuild_catalog(Catalog(open_storage(storage)), show_progress)
    print(
        f"{describe_count(report.num_subjects, 'subject')} in "
        f"{describe_count(report.num_runs, 'run')}; {describe_count(report.num_added, 'version')} "
        f"added, {report.num_removed} removed that were gone"
    )
    if report.failures:
        raise DreamBoothError("; ".join(report.failures[:3]))


@app.command()
def ls(
    storage: StorageArguments = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="subjects at most")] = 100,
    after: Annotated[str, typer.Option(help="subject to go on after: the last one shown")] = "",
) -> None:
    """List subjects: name, newest run, number of versions; in a fixed order, not sorted."""
    from dreambooth_ray.storage.catalog import Catalog, listing_position

    catalog = Catalog(open_storage(storage))
    subjects = catalog.list_subjects(listing_position(after) if after else "", limit)
    for subject in subjects:
        try:
            entry = catalog.read(subject)
        except FileNotFoundError:
            continue  # deleted in between
        except DreamBoothError as error:
            print(f"{subject}\t{error}")
            continue
        num_versions = len(entry.versions)
        print(f"{subject}\t{entry.newest.run_id}\t{num_versions} versions")
    if len(subjects) == limit:
        print(f"more: --after {subjects[-1]}", file=sys.stderr)


@app.command()
def remove(
    run: Annotated[str, typer.Argument(help="URI of a run, as `dreambooth train` printed it")],
    files: Annotated[bool, typer.Option("--files", help="delete the run's files as well")] = False,
) -> None:
    """Take what a run has made out of the catalog: it is no longer served. Its files stay."""
    from dreambooth_ray.runs import delete_run, read_run_config
    from dreambooth_ray.storage.catalog import withdraw_run
    from dreambooth_ray.storage.store import Store

    store = Store(run)
    read_run_config(store)
    if files:
        delete_run(store, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        withdraw_run(store)
