"""A run as a RayJob: the manifest of k8s/base/rayjob, filled in from a recipe."""

import copy
import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cluster.pod_checks import check_pod_settings
from cluster.ray_jobs import make_portable_config
from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store

Resource = dict[str, Any]
RECIPE = "recipe.yaml"
# Annotations, by which a RayJob is known as a run, and the label of everything that is ours.
RUN_ID, RUN_URI = "dreambooth/run-id", "dreambooth/run-uri"
PART_OF = "app.kubernetes.io/part-of=dreambooth"
# The container that submits, by KubeRay's name for it.
SUBMITTER = "ray-job-submitter"
# KubeRay refuses longer ones: it puts words and letters behind them.
MAX_NAME_LENGTH = 47


def format_rayjob(config: Config, image: str, namespace: str) -> str:
    """The manifests of a run as YAML. raises: ConfigError for settings that pods can't use"""
    refuse_pod_settings(config, image, namespace)
    return yaml.safe_dump_all(render_rayjob(config, image, namespace), sort_keys=False)


def refuse_pod_settings(config: Config, image: str, namespace: str) -> None:
    """raises: ConfigError that names each setting that pods can't use"""
    findings = list(check_pod_settings(config, image, namespace))
    if findings:
        raise ConfigError("; also ".join(finding.text for finding in findings))


def name_rayjob(run_id: str, storage_uri: str) -> str:
    """The name of a run's RayJob and ConfigMap: another one for every other run.

    Run ids have letters, lengths and signs that names of Kubernetes have not, and the same id may
    be a run in another storage: what tells them apart is a hash.
    """
    run_id_slug = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    digest = hashlib.sha256(f"{storage_uri.rstrip('/')} {run_id}".encode()).hexdigest()[:10]
    name_prefix = f"dreambooth-{run_id_slug}"[: MAX_NAME_LENGTH - len(digest) - 1].rstrip("-")
    return f"{name_prefix}-{digest}"


def render_rayjob(config: Config, image: str, namespace: str) -> list[Resource]:
    """ConfigMap with the recipe and RayJob, both named after the run."""
    portable_config = make_portable_config(config)
    resource_metadata = {
        "name": name_rayjob(str(portable_config.run_id), portable_config.storage.uri),
        "namespace": namespace,
    }
    labels = dict([PART_OF.split("=")])
    recipe_config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**resource_metadata, "labels": labels},
        "data": {RECIPE: dump_config(portable_config)},
    }
    rayjob_manifest = copy.deepcopy(yaml.safe_load(_rayjob_manifest_path().read_text()))
    rayjob_manifest["metadata"] = {
        **resource_metadata,
        "labels": {**labels, "app.kubernetes.io/name": "dreambooth-train"},
        "annotations": {
            RUN_ID: str(portable_config.run_id),
            RUN_URI: _name_run_uri(portable_config),
        },
    }
    cluster_spec = rayjob_manifest["spec"]["rayClusterSpec"]
    cluster_spec["rayVersion"] = version("ray")
    worker_group_name = "gpu" if portable_config.cluster.gpus else "cpu"
    for group_spec in cluster_spec["workerGroupSpecs"]:
        if group_spec["groupName"] == worker_group_name:
            worker_range = portable_config.cluster.span
            group_spec.update(
                replicas=worker_range.min,
                minReplicas=worker_range.min,
                maxReplicas=worker_range.max,
            )
    if not portable_config.cluster.gpus:
        cluster_spec["workerGroupSpecs"] = [
            g for g in cluster_spec["workerGroupSpecs"] if g["groupName"] != "gpu"
        ]
    _fill_image_and_recipe_names(rayjob_manifest, image, resource_metadata["name"])
    return [recipe_config_map, rayjob_manifest]


def _name_run_uri(config: Config) -> str:
    return f"{Store(config.storage.uri).uri}/{paths.run(str(config.run_id))}"


def _fill_image_and_recipe_names(tree: Any, image: str, recipe_name: str) -> None:
    """Put image and name of the recipe wherever a pod names them."""
    if isinstance(tree, list):
        for subtree in tree:
            _fill_image_and_recipe_names(subtree, image, recipe_name)
    elif isinstance(tree, dict):
        if tree.get("image") == "dreambooth-ray":
            tree["image"] = image
        if tree.get("configMap") == {"name": "dreambooth-recipe"}:
            tree["configMap"] = {"name": recipe_name}
        for subtree in tree.values():
            _fill_image_and_recipe_names(subtree, image, recipe_name)


def _rayjob_manifest_path() -> Path:
    """Beside this file in a wheel, in k8s/ in a checkout."""
    packaged_manifest = Path(__file__).with_name("rayjob.yaml")
    if packaged_manifest.is_file():
        return packaged_manifest
    return Path(__file__).parents[1] / "k8s" / "base" / "rayjob" / "rayjob.yaml"
