"""The manifests, checked without a cluster: rendered, against schemas, against our own types."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml

from cluster.pod_checks import check_pod_settings
from cluster.rayjob import render_rayjob
from dreambooth_ray.config.load import load_config, parse_config
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from serve.gateway_metrics import Metrics
from tests.integration import crd
from tests.pods.manifest import parse_quantity
from tests.published_models import CONFIGS
from tests.unit.cluster.test_pod_checks import IMAGE, REMOTE

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
OVERLAYS = sorted(p.name for p in (ROOT / "k8s" / "overlays").iterdir())
KUBERNETES = "1.34"
CRDS = os.environ.get("KUBERAY_CRDS_DIR")
# Kinds of operators whose schemas are not in any package: looked at by eye and by kustomize alone.
FOREIGN = {
    "PodMonitor", "PrometheusRule", "ClusterQueue", "LocalQueue", "ResourceFlavor", "Gateway",
    "HTTPRoute",
}  # fmt: skip
RAY_KINDS = {"RayJob", "RayService", "RayCluster"}

Resource = dict[str, Any]


@cache
def render(overlay: str) -> str:
    result = subprocess.run(
        [BIN / "kubectl", "kustomize", ROOT / "k8s" / "overlays" / overlay],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def resources(overlay: str) -> list[Resource]:
    return list(yaml.safe_load_all(render(overlay)))


def pod_specs(tree: Any) -> list[Resource]:
    """Every pod specification anywhere in a resource."""
    if isinstance(tree, list):
        return [spec for item in tree for spec in pod_specs(item)]
    if not isinstance(tree, dict):
        return []
    own = [tree] if "containers" in tree else []
    return own + [spec for item in tree.values() for spec in pod_specs(item)]


def describe_resource(resource: Resource) -> str:
    return f"{resource['kind']}/{resource['metadata']['name']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_core_kinds_are_valid(overlay: str) -> None:
    for resource in resources(overlay):
        if resource["kind"] not in FOREIGN | RAY_KINDS:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS_DIR names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_kinds_are_valid(overlay: str) -> None:
    schemas = crd.read_schemas(Path(str(CRDS)))
    for resource in resources(overlay):
        if resource["kind"] in RAY_KINDS:
            schema = schemas[resource["apiVersion"], resource["kind"]]
            assert crd.faults(schema, resource) == [], describe_resource(resource)


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS_DIR names no folder with KubeRay's CRDs")
def test_a_planted_typo_is_found() -> None:
    schemas = crd.read_schemas(Path(str(CRDS)))
    job = next(r for r in resources("kind") if r["kind"] == "RayJob")
    for plant in ("rayVersionn", "idleTimeoutSecond"):
        broken = copy.deepcopy(job)
        cluster = broken["spec"]["rayClusterSpec"]
        (cluster if plant == "rayVersionn" else cluster["autoscalerOptions"])[plant] = 60
        assert any(plant in fault for fault in crd.faults(schemas["ray.io/v1", "RayJob"], broken))


# A change of a RayJob, and what a rule of its definition says to it.
RULES = {
    "managedBy": ("somebody", "managedBy field value must be either"),
    "deletionStrategy": ({"onSuccess": {"policy": "DeleteSelf"}}, "requires either BOTH onSuccess"),
}


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS_DIR names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("field", RULES)
def test_rules_of_the_definitions_are_evaluated(field: str) -> None:
    value, words = RULES[field]
    job = copy.deepcopy(next(r for r in resources("kind") if r["kind"] == "RayJob"))
    job["spec"][field] = value
    schema = crd.read_schemas(Path(str(CRDS)))["ray.io/v1", "RayJob"]
    assert any(words in fault for fault in crd.faults(schema, job))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_locked_down(overlay: str) -> None:
    for resource in resources(overlay):
        for spec in pod_specs(resource):
            assert spec["securityContext"]["runAsNonRoot"], describe_resource(resource)
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in spec["containers"]:
                rules = container["securityContext"]
                assert not rules["allowPrivilegeEscalation"]
                assert rules["readOnlyRootFilesystem"]
                assert rules["capabilities"] == {"drop": ["ALL"]}
                assert set(container["resources"]) == {"requests", "limits"}
                assert re.search(r":[\w.-]*\d[\w.-]*$", container["image"]), container["image"]
                mounted = {m["name"] for m in container.get("volumeMounts", [])}
                assert mounted <= {v["name"] for v in spec.get("volumes", [])} | {"data"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budgets_let_nodes_drain(overlay: str) -> None:
    """KubeRay's definitions have no scale subresource: of their pods a budget may say how many have
    to stay, as a number, and no more. Where that is all there are, a drain never ends.
    """
    for resource in resources(overlay):
        if resource["kind"] == "PodDisruptionBudget":
            assert isinstance(resource["spec"].get("minAvailable"), int), describe_resource(
                resource
            )
            assert "maxUnavailable" not in resource["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_head_services_of_jobs_and_endpoints_find_their_pods(overlay: str) -> None:
    """KubeRay selects heads by `app.kubernetes.io/name: kuberay`, which a template may replace."""
    for resource in resources(overlay):
        for key in ("rayClusterSpec", "rayClusterConfig"):
            if cluster := resource.get("spec", {}).get(key):
                labels = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
                assert labels.get("app.kubernetes.io/name", "kuberay") == "kuberay"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_recipes_ask_for_what_pods_can_reach(overlay: str) -> None:
    for resource in resources(overlay):
        if resource["kind"] == "ConfigMap" and "recipe.yaml" in resource.get("data", {}):
            config = parse_config(resource["data"]["recipe.yaml"], overlay, [])
            assert list(check_pod_settings(config, IMAGE, "dreambooth")) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_that_are_used_exist(overlay: str) -> None:
    manifests = resources(overlay)
    names = {(r["kind"], r["metadata"]["name"]) for r in manifests}
    for resource in manifests:
        for spec in pod_specs(resource):
            assert ("ServiceAccount", spec["serviceAccountName"]) in names, describe_resource(
                resource
            )
            for volume in spec.get("volumes", []):
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in names


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_in_the_manifests_is_ray_as_installed(overlay: str) -> None:
    said = re.findall(r"rayVersion: (\S+)", render(overlay))
    assert set(said) == {ray.__version__}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_embedded_recipes_are_configurations(overlay: str) -> None:
    for resource in resources(overlay):
        if resource["kind"] == "ConfigMap" and "recipe.yaml" in resource.get("data", {}):
            config = parse_config(resource["data"]["recipe.yaml"], overlay, [])
            # Without a name of its own, a retried job would begin a new run.
            assert config.run_id


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_arguments_of_the_endpoint_are_a_configuration(overlay: str) -> None:
    for resource in resources(overlay):
        if resource["kind"] == "RayService":
            serve_config = yaml.safe_load(resource["spec"]["serveConfigV2"])
            # In an upgrade the cluster before outlives the requests that it has.
            delay_s = resource["spec"]["rayClusterDeletionDelaySeconds"]
            assert delay_s > serve_config["http_options"]["request_timeout_s"]
            for application in serve_config["applications"]:
                assert application["import_path"] == "serve.app:build"
                ServeConfig.model_validate(application["args"])


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS_DIR names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("gpus", ["true", "false"])
def test_a_rendered_run_is_valid(gpus: str) -> None:
    config = load_config("toy-robot", [*REMOTE, f"cluster.gpus={gpus}"])
    recipe, job = render_rayjob(config, IMAGE, "team")
    kubernetes_validate.validate(recipe, KUBERNETES, strict=True)
    schemas = crd.read_schemas(Path(str(CRDS)))
    assert crd.faults(schemas["ray.io/v1", "RayJob"], job) == []


def test_a_gang_has_room_for_its_recipe() -> None:
    manifests = resources("train-gpu")
    recipe = next(r for r in manifests if r["metadata"]["name"] == "dreambooth-recipe")
    config = parse_config(recipe["data"]["recipe.yaml"], "train-gpu", [])
    job = next(r for r in manifests if r["kind"] == "RayJob")
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = sum(g["replicas"] for g in groups if g["groupName"] == "gpu")
    assert gpus >= config.cluster.workers
    assert job["spec"]["suspend"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "dreambooth"


@pytest.mark.fault
def test_workers_of_a_gang_have_memory_for_their_recipe() -> None:
    """Even if nothing of it lay on the GPU, and a whole checkpoint beside it."""
    manifests = resources("train-gpu")
    recipe = next(r for r in manifests if r["metadata"]["name"] == "dreambooth-recipe")
    config = parse_config(recipe["data"]["recipe.yaml"], "train-gpu", ["cluster.gpus=false"])
    footprint = estimate_training_footprint(config, CONFIGS / "stable-diffusion-1.5")
    step_bytes = footprint.states_bytes + footprint.frozen_bytes + footprint.activations_bytes
    job = next(r for r in manifests if r["kind"] == "RayJob")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert step_bytes + footprint.states_bytes < 0.8 * parse_quantity(limits["memory"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is missing")
def test_alert_rules_pass_promtool(tmp_path: Path) -> None:
    rules = next(r for r in resources("serve-gpu") if r["kind"] == "PrometheusRule")["spec"]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rules))
    result = subprocess.run(
        ["promtool", "check", "rules", path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_metrics_in_rules_and_dashboard_are_metrics_of_ray_and_of_gateways() -> None:
    """Ray's own dashboards name what Ray exports; a name that is not there never fires."""
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    ray_metrics = set(
        re.findall(r"\bray_[a-z_0-9]+", "".join(p.read_text() for p in folder.glob("*.py")))
    )
    manifests = resources("serve-gpu")
    rules = next(r for r in manifests if r["kind"] == "PrometheusRule")
    dashboard = next(r for r in manifests if r["metadata"]["name"] == "dreambooth-dashboard")
    panels = json.loads(dashboard["data"]["dreambooth.json"])["panels"]
    assert len(panels) >= 8
    expressions = [t["expr"] for p in panels for t in p["targets"]]
    expressions += [rule["expr"] for g in rules["spec"]["groups"] for rule in g["rules"]]
    labels = {"ray_io_cluster", "ray_train_run_name"}
    used = {m for e in expressions for m in re.findall(r"\bray_[a-z_0-9]+", e)} - labels
    own = {m for e in expressions for m in re.findall(r"\bdreambooth_[a-z_0-9]+", e)}
    assert used
    assert used <= ray_metrics, used - ray_metrics
    gateway_metrics = set(re.findall(r"# TYPE (\w+)", Metrics().format_prometheus().decode()))
    assert own
    assert {m.removesuffix("_bucket") for m in own} <= gateway_metrics, own - gateway_metrics


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_dockerfiles_pass_hadolint(name: str) -> None:
    result = subprocess.run(
        [BIN / "hadolint", ROOT / "k8s" / "docker" / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_images_have_the_versions_this_was_tested_with() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(p for p in pins if p.startswith("torch=="))
    for path in (ROOT / "k8s" / "docker").glob("Dockerfile.c*"):
        if path.suffix != ".dockerignore":
            assert torch in path.read_text()
