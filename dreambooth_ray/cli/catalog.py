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
    from dreambooth_ray.storage.version_catalog import SubjectVersionCatalog
    from dreambooth_ray.storage.version_catalog_rebuild import rebuild_catalog

    def print_rebuild_progress(unit: str, num_done: int, total: int) -> None:
        print(f"{unit}: {num_done} of {total}", file=sys.stderr, flush=True)

    rebuild_report = rebuild_catalog(
        SubjectVersionCatalog(open_storage(storage)), print_rebuild_progress
    )
    print(
        f"{describe_count(rebuild_report.num_subjects, 'subject')} in "
        f"{describe_count(rebuild_report.num_runs, 'run')}; "
        f"{describe_count(rebuild_report.num_added, 'version')} "
        f"added, {rebuild_report.num_removed} removed that were gone"
    )
    if rebuild_report.failures:
        raise DreamBoothError("; ".join(rebuild_report.failures[:3]))


@app.command()
def ls(
    storage: StorageArguments = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="subjects at most")] = 100,
    after: Annotated[str, typer.Option(help="subject to go on after: the last one shown")] = "",
) -> None:
    """List subjects: name, newest run, number of versions; in a fixed order, not sorted."""
    from dreambooth_ray.storage.version_catalog import (
        SubjectVersionCatalog,
        subject_listing_position,
    )

    subject_catalog = SubjectVersionCatalog(open_storage(storage))
    subject_names = subject_catalog.list_subjects(
        subject_listing_position(after) if after else "", limit
    )
    for subject_name in subject_names:
        try:
            catalog_entry = subject_catalog.read(subject_name)
        except FileNotFoundError:
            continue  # deleted in between
        except DreamBoothError as error:
            print(f"{subject_name}\t{error}")
            continue
        num_versions = len(catalog_entry.versions)
        print(f"{subject_name}\t{catalog_entry.newest.run_id}\t{num_versions} versions")
    if len(subject_names) == limit:
        print(f"more: --after {subject_names[-1]}", file=sys.stderr)


@app.command()
def remove(
    run: Annotated[str, typer.Argument(help="URI of a run, as `dreambooth train` printed it")],
    files: Annotated[bool, typer.Option("--files", help="delete the run's files as well")] = False,
) -> None:
    """Take what a run has made out of the catalog: it is no longer served. Its files stay."""
    from dreambooth_ray.runs import delete_run, read_run_config
    from dreambooth_ray.storage import paths
    from dreambooth_ray.storage.store import Store
    from dreambooth_ray.storage.version_catalog import withdraw_run

    run_store = Store(run)
    # One that can't be read, or was half deleted, is deleted all the same.
    if not (files and (run_store.exists(paths.CONFIG) or run_store.names(paths.LEASES))):
        read_run_config(run_store)
    if files:
        delete_run(run_store, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        withdraw_run(run_store)
