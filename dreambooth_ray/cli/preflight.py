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

    entry = find_cluster(cluster, clusters) if cluster else None
    refuse_fatal_findings(load_config(recipe, overrides or []), entry)
    print("nothing stands in the way")


def refuse_fatal_findings(config: "Config", entry: "ClusterEntry | None") -> None:
    """Print what preflight finds; raises ConfigError if a finding is fatal."""
    from cluster.preflight_checks import format_findings, run_preflight

    findings = run_preflight(config, entry)
    for line in format_findings(findings):
        print(line, file=sys.stderr)
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        keys = ", ".join(dict.fromkeys(finding.key for finding in fatal))
        raise ConfigError(f"preflight: to mend first: {keys}")
