"""`dreambooth train` and `dreambooth resume`: a run, and the rest of one."""

from typing import Annotated

import typer

from dreambooth_ray.cli.preflight import CLUSTERS_FILE, Clusters
from dreambooth_ray.cli.run_commands import K8s, Namespace, resume_on
from dreambooth_ray.errors import ConfigError

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
    from dreambooth_ray import api

    print(api.train(recipe, *(overrides or []), force=force))


def resume(
    run: Annotated[str, typer.Argument(help="URI of a run, or with --cluster or --k8s its run id")],
    overrides: Overrides = None,
    force: Force = False,
    cluster: Annotated[str, typer.Option(help="take it up again there: name of a cluster")] = "",
    k8s: K8s = False,
    namespace: Namespace = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """Finish a run from its newest intact checkpoint; prints the run's URI."""
    if cluster or k8s or namespace:
        if overrides or force:
            refused_changes = [*(overrides or []), *(["--force"] if force else [])]
            raise ConfigError(
                f"{' '.join(refused_changes)}: with --cluster or --k8s a run is taken up as it "
                "is; change "
                "it with `dreambooth resume` from where its storage is reached, without them"
            )
        print(resume_on(run, cluster, clusters, namespace, k8s=k8s))
        return
    from dreambooth_ray import api
    from dreambooth_ray.runs import load_run_config

    print(api.train(load_run_config(run, overrides or []), force=force))
