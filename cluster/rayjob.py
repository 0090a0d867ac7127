"""A run as a RayJob: the manifest of k8s/base/rayjob, filled in from a recipe."""

import copy
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cluster.ray_jobs import place
from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CapacityError, ConfigError

Resource = dict[str, Any]
RECIPE = "recipe.yaml"


def submit_rayjob(config: Config, image: str, namespace: str, *, apply: bool) -> str:
    """The manifests of a run as YAML; with `apply` handed to kubectl, and its words returned.

    raises: ConfigError without image, CapacityError if kubectl is missing or refuses
    """
    text = yaml.safe_dump_all(render(config, image, namespace), sort_keys=False)
    if not apply:
        return text
    if not shutil.which("kubectl"):
        raise CapacityError(
            "--apply needs kubectl, which is not installed; print and apply it there"
        )
    done = subprocess.run(
        ["kubectl", "apply", "--filename", "-"],
        input=text, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CapacityError(f"kubectl apply failed: {done.stderr.strip()}")
    return done.stdout.strip()


def render(config: Config, image: str, namespace: str) -> list[Resource]:
    """ConfigMap with the recipe and RayJob, both named after the run.

    raises: ConfigError without an image
    """
    if not image:
        raise ConfigError("--image is not given; name the image that the pods run")
    placed = place(config)
    name = f"dreambooth-{str(placed.run_id).lower().replace('.', '-').replace('_', '-')}"[:47]
    meta = {"name": name.rstrip("-"), "namespace": namespace}
    labels = {"app.kubernetes.io/part-of": "dreambooth"}
    recipe = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**meta, "labels": labels},
        "data": {RECIPE: dump_config(placed)},
    }
    job = copy.deepcopy(yaml.safe_load(_manifest().read_text()))
    job["metadata"] = {**meta, "labels": {**labels, "app.kubernetes.io/name": "dreambooth-train"}}
    cluster = job["spec"]["rayClusterSpec"]
    cluster["rayVersion"] = version("ray")
    group = "gpu" if placed.cluster.gpus else "cpu"
    for workers in cluster["workerGroupSpecs"]:
        if workers["groupName"] == group:
            count = placed.cluster.workers
            workers.update(replicas=count, minReplicas=count, maxReplicas=count)
    if not placed.cluster.gpus:
        cluster["workerGroupSpecs"] = [
            g for g in cluster["workerGroupSpecs"] if g["groupName"] != "gpu"
        ]
    _fill(job, image, meta["name"])
    return [recipe, job]


def _fill(tree: Any, image: str, recipe: str) -> None:
    """Put image and name of the recipe wherever a pod names them."""
    if isinstance(tree, list):
        for item in tree:
            _fill(item, image, recipe)
    elif isinstance(tree, dict):
        if tree.get("image") == "dreambooth-ray":
            tree["image"] = image
        if tree.get("configMap") == {"name": "dreambooth-recipe"}:
            tree["configMap"] = {"name": recipe}
        for item in tree.values():
            _fill(item, image, recipe)


def _manifest() -> Path:
    """Beside this file in a wheel, in k8s/ in a checkout."""
    shipped = Path(__file__).with_name("rayjob.yaml")
    if shipped.is_file():
        return shipped
    return Path(__file__).parents[1] / "k8s" / "base" / "rayjob" / "rayjob.yaml"
