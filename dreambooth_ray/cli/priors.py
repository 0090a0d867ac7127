"""`dreambooth priors`: the sets of class images, shared by all runs of a storage."""

import sys
from typing import Annotated

import typer

from dreambooth_ray.cli.gc import Delete, OlderThan, collect_garbage, print_sum
from dreambooth_ray.cli.storage_argument import StorageArguments, open_storage
from dreambooth_ray.errors import ConfigError

# ruff: noqa: PLC0415  heavy modules are imported by the verb that needs them

app = typer.Typer(name="priors", help="Class images: list, make, verify, gc.", no_args_is_help=True)


@app.command(name="list")
def list_(storage: StorageArguments = None) -> None:
    """Show every set: images, size, runs that use it, prompts."""
    from rich.console import Console
    from rich.table import Table

    from dreambooth_ray.priors.prior_catalog import list_prior_sets

    store = open_storage(storage)
    prior_sets = list_prior_sets(store)
    if not prior_sets:
        print(f"no class images in {store.uri}")
        return
    prior_set_table = Table("set", "images", "MB", "runs", "prompts")
    for set_info in prior_sets:
        megabytes = f"{set_info.size_bytes / 1e6:.1f}"
        prior_set_table.add_row(
            set_info.digest,
            str(set_info.images),
            megabytes,
            str(len(set_info.runs)),
            "; ".join(set_info.prompts),
        )
    Console().print(prior_set_table)
    print(
        "Sets grow by whole batches of prior.batch_size: a run takes the first of a set, as many "
        "as prior.count says."
    )


@app.command()
def make(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or a shipped recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value")] = None,
) -> None:
    """Generate the class images a recipe needs, without training; prints their folder's URI."""
    from dreambooth_ray.config.load import load_config
    from dreambooth_ray.display import TrainingDisplay
    from dreambooth_ray.preparation import prepare_run

    training_display = TrainingDisplay()
    config = load_config(recipe, overrides or [])
    if not config.prior.num_images:
        raise ConfigError(
            f"prior.kind={config.prior.kind} with prior.count={config.prior.count} trains on no "
            "class images; take prior.kind=images or both, and a count above 0"
        )
    prepared_run = prepare_run(config, training_display)
    from cluster.session import session
    from dreambooth_ray import pipeline

    prior_request = pipeline.plan_priors(prepared_run, prepared_run.config.prior.num_images)
    with session(prepared_run.config, imports_ahead=True):
        prior_set_store = pipeline.generate_missing_priors(
            prepared_run, prior_request, training_display
        )
    print(prior_set_store.uri)


@app.command()
def verify(
    digest: Annotated[str, typer.Argument(help="the set, as `priors list` shows it")],
    storage: StorageArguments = None,
) -> None:
    """Read every byte of a set and compare; exit code 1 if one is not as committed."""
    from dreambooth_ray.priors.prior_catalog import verify_prior_set

    integrity_problems = verify_prior_set(open_storage(storage), digest)
    for integrity_problem in integrity_problems:
        print(integrity_problem)
    if integrity_problems:
        print("damaged chunks are drawn again by the next run that uses them", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{digest} is as it was committed")


@app.command()
def gc(
    storage: StorageArguments = None,
    delete: Delete = False,
    older_than: OlderThan = "24h",
) -> None:
    """As `dreambooth gc`, of class images alone."""
    from dreambooth_ray.storage import paths

    storage_uri = open_storage(storage).uri
    print_sum(*collect_garbage(storage_uri, delete, older_than, f"{paths.PRIORS}/"), delete)
