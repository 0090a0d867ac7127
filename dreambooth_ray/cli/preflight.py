"""`dreambooth preflight`: what would go wrong, found before anything is started."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from cluster.cluster_registry import ClusterEntry
    from dreambooth_ray.config.schema import Config

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

Recipe = Annotated[str, typer.Argument(help="a YAML file, or a shipped recipe")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value")]
Clusters = Annotated[Path, typer.Option(help="YAML file of named clusters")]
CLUSTERS_FILE = Path("clusters.yaml")


def preflight(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="name in the clusters file; none: here")] = "",
    clusters: Clusters = CLUSTERS_FILE,
) -> None:
    """Find what would go wrong before anything is started; exit code 2 if something would."""
    from cluster.cluster_registry import find_cluster
    from dreambooth_ray.config.load import load_config

    cluster_entry = find_cluster(cluster, clusters) if cluster else None
    config = fit_memory(load_config(recipe, overrides or []), cluster_entry)
    refuse_fatal_findings(config, cluster_entry)
    print("nothing stands in the way")


def fit_memory(config: "Config", entry: "ClusterEntry | None") -> "Config":
    """With memory.fit, the configuration that fits a cluster's GPUs; says what it changes."""
    from cluster.preflight_checks import fit_to_gpu_memory

    if entry is None:
        return config
    return fit_to_gpu_memory(config, entry, lambda line: print(line, file=sys.stderr))


def refuse_fatal_findings(
    config: "Config", entry: "ClusterEntry | None", *, is_elsewhere: bool = False
) -> None:
    """Print what preflight finds; raises ConfigError if a finding is fatal.

    is_elsewhere: the run is meant for machines of which nothing is known yet
    """
    from cluster.preflight_checks import format_findings, run_preflight

    preflight_findings = run_preflight(config, entry, is_elsewhere=is_elsewhere)
    for finding_text in format_findings(preflight_findings):
        print(finding_text, file=sys.stderr)
    fatal_findings = [finding for finding in preflight_findings if finding.fatal]
    if fatal_findings:
        fatal_keys = ", ".join(dict.fromkeys(finding.key for finding in fatal_findings))
        raise ConfigError(f"preflight: to mend first: {fatal_keys}")
