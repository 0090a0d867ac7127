"""`dreambooth train` and `dreambooth resume`: a run, and the rest of one."""

from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.cli.jobs import resume_on
from dreambooth_ray.cli.preflight import CLUSTERS_FILE, Clusters
from dreambooth_ray.imports import large_imports

if TYPE_CHECKING:
    from dreambooth_ray.config.schema import Config

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

Recipe = Annotated[
    str, typer.Argument(help="a YAML file, or a shipped recipe such as toy-robot.yaml")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, for example train.steps=200")
]
Force = Annotated[
    bool, typer.Option("--force", help="go on though the run's configuration was another")
]


def train(recipe: Recipe, overrides: Overrides = None, force: Force = False) -> None:
    """Fine-tune on a folder of photographs; prints the run's URI."""
    from dreambooth_ray.config.load import load_config

    _train_run(load_config(recipe, overrides or []), force)


def resume(
    run: Annotated[str, typer.Argument(help="URI of a run, or with --cluster its run id")],
    overrides: Overrides = None,
    force: Force = False,
    cluster: Annotated[str, typer.Option(help="take it up again there: name of a cluster")] = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """Finish a run from its newest intact checkpoint; prints the run's URI."""
    if cluster:
        print(resume_on(run, cluster, clusters))
        return
    from dreambooth_ray.runs import find_run

    _train_run(find_run(run, overrides or []), force)


def _train_run(config: "Config", force: bool) -> None:
    from cluster.session import check_address, session
    from dreambooth_ray.display import TrainingDisplay
    from dreambooth_ray.preparation import prepare_run
    from dreambooth_ray.runs import is_finished, open_run

    display = TrainingDisplay()
    check_address(config)
    prepared = prepare_run(config, display)
    run = open_run(config, force)
    display.say(f"run {run.uri}")
    if not is_finished(run):
        with session(config, meanwhile=_import_pipeline):
            from dreambooth_ray import pipeline

            pipeline.train(prepared, run, display)
    print(run.uri)


def _import_pipeline() -> None:
    with large_imports():
        import dreambooth_ray.pipeline  # noqa: F401
