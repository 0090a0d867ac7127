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
    words = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    digest = hashlib.sha256(f"{storage_uri.rstrip('/')} {run_id}".encode()).hexdigest()[:10]
    prefix = f"dreambooth-{words}"[: MAX_NAME_LENGTH - len(digest) - 1].rstrip("-")
    return f"{prefix}-{digest}"


def render_rayjob(config: Config, image: str, namespace: str) -> list[Resource]:
    """ConfigMap with the recipe and RayJob, both named after the run."""
    portable = make_portable_config(config)
    meta = {
        "name": name_rayjob(str(portable.run_id), portable.storage.uri),
        "namespace": namespace,
    }
    labels = dict([PART_OF.split("=")])
    recipe = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**meta, "labels": labels},
        "data": {RECIPE: dump_config(portable)},
    }
    job = copy.deepcopy(yaml.safe_load(_manifest_path().read_text()))
    job["metadata"] = {
        **meta,
        "labels": {**labels, "app.kubernetes.io/name": "dreambooth-train"},
        "annotations": {RUN_ID: str(portable.run_id), RUN_URI: _name_run_uri(portable)},
    }
    cluster = job["spec"]["rayClusterSpec"]
    cluster["rayVersion"] = version("ray")
    group = "gpu" if portable.cluster.gpus else "cpu"
    for workers in cluster["workerGroupSpecs"]:
        if workers["groupName"] == group:
            span = portable.cluster.span
            workers.update(replicas=span.min, minReplicas=span.min, maxReplicas=span.max)
    if not portable.cluster.gpus:
        cluster["workerGroupSpecs"] = [
            g for g in cluster["workerGroupSpecs"] if g["groupName"] != "gpu"
        ]
    _fill_names(job, image, meta["name"])
    return [recipe, job]


def _name_run_uri(config: Config) -> str:
    return f"{Store(config.storage.uri).uri}/{paths.run(str(config.run_id))}"


def _fill_names(tree: Any, image: str, recipe: str) -> None:
    """Put image and name of the recipe wherever a pod names them."""
    if isinstance(tree, list):
        for item in tree:
            _fill_names(item, image, recipe)
    elif isinstance(tree, dict):
        if tree.get("image") == "dreambooth-ray":
            tree["image"] = image
        if tree.get("configMap") == {"name": "dreambooth-recipe"}:
            tree["configMap"] = {"name": recipe}
        for item in tree.values():
            _fill_names(item, image, recipe)


def _manifest_path() -> Path:
    """Beside this file in a wheel, in k8s/ in a checkout."""
    shipped = Path(__file__).with_name("rayjob.yaml")
    if shipped.is_file():
        return shipped
    return Path(__file__).parents[1] / "k8s" / "base" / "rayjob" / "rayjob.yaml"
