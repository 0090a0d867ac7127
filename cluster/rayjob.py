"""A run as a RayJob: the manifest of k8s/base/rayjob, filled in from a recipe."""

import copy
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cluster.ray_jobs import make_portable_config
from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CapacityError, ConfigError

Resource = dict[str, Any]
RECIPE = "recipe.yaml"


def submit_rayjob(config: Config, image: str, namespace: str, *, apply: bool) -> str:
    """The manifests of a run as YAML; with `apply` handed to kubectl, and its words returned.

    raises: ConfigError without image, CapacityError if kubectl is missing or refuses
    """
    text = yaml.safe_dump_all(render_rayjob(config, image, namespace), sort_keys=False)
    if not apply:
        return text
    if not shutil.which("kubectl"):
        raise CapacityError(
            "--apply needs kubectl, which is not installed; print and apply it there"
        )
    result = subprocess.run(
        ["kubectl", "apply", "--filename", "-"],
        input=text, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if result.returncode:
        raise CapacityError(f"kubectl apply failed: {result.stderr.strip()}")
    return result.stdout.strip()


def render_rayjob(config: Config, image: str, namespace: str) -> list[Resource]:
    """ConfigMap with the recipe and RayJob, both named after the run.

    raises: ConfigError without an image
    """
    if not image:
        raise ConfigError("--image is not given; name the image that the pods run")
    portable = make_portable_config(config)
    name = f"dreambooth-{str(portable.run_id).lower().replace('.', '-').replace('_', '-')}"[:47]
    meta = {"name": name.rstrip("-"), "namespace": namespace}
    labels = {"app.kubernetes.io/part-of": "dreambooth"}
    recipe = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**meta, "labels": labels},
        "data": {RECIPE: dump_config(portable)},
    }
    job = copy.deepcopy(yaml.safe_load(_manifest_path().read_text()))
    job["metadata"] = {**meta, "labels": {**labels, "app.kubernetes.io/name": "dreambooth-train"}}
    cluster = job["spec"]["rayClusterSpec"]
    cluster["rayVersion"] = version("ray")
    group = "gpu" if portable.cluster.gpus else "cpu"
    for workers in cluster["workerGroupSpecs"]:
        if workers["groupName"] == group:
            count = portable.cluster.workers
            workers.update(replicas=count, minReplicas=count, maxReplicas=count)
    if not portable.cluster.gpus:
        cluster["workerGroupSpecs"] = [
            g for g in cluster["workerGroupSpecs"] if g["groupName"] != "gpu"
        ]
    _fill_names(job, image, meta["name"])
    return [recipe, job]


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
