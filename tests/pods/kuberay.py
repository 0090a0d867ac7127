"""What KubeRay 1.7.0 makes of a RayCluster, a RayJob and a RayService, as far as pods see it.

After ray-project/kuberay at the tag v1.7.0, ray-operator/controllers/ray:
- common/pod.go: DefaultHeadPodTemplate, DefaultWorkerPodTemplate, BuildPod, setContainerEnvVars,
  setMissingRayStartParams, generateRayStartCommand, convertParamMap, initLivenessAndReadinessProbe,
  configureRedisFT, SetContainerTokenAuthEnvVars, labelPod
- common/service.go: BuildServiceForHeadPod, BuildHeadServiceForRayJob, BuildServeService
- common/job.go: BuildJobSubmitCommand; rayjob_controller.go: configureSubmitterContainer
- utils/constant.go and utils/util.go: names, ports, probes' numbers

Left out: the autoscaler's container, which asks Kubernetes' API (so every group keeps its
`replicas`), TLS, history server, accelerators (so GPUs are not asked for).
"""

import copy
from dataclasses import dataclass

from tests.pods.manifest import Service, Tree, parse_quantity

GCS_PORT = "6379"
_SHELL = ["/bin/bash", "-c", "--"]
# Options of `ray start` that take true or false as a value; the others are switches.
_VALUED = ("log-color", "include-dashboard", "include-log-monitor")
_WAIT = """
SECONDS=0
while true; do
  if ray health-check --address {address} > /dev/null 2>&1; then
    echo "GCS is ready."
    break
  fi
  echo "$SECONDS seconds elapsed: Waiting for GCS to be ready."
  sleep 5
done
"""


@dataclass(frozen=True)
class Cluster:
    """A RayCluster. kind: of what made it; name: with the five letters that KubeRay adds"""

    kind: str
    owner: str
    name: str
    namespace: str
    spec: Tree

    @property
    def head_service(self) -> str:
        return f"{self.name}-head-svc"

    @property
    def head_address(self) -> str:
        """The head's full name, as workers and the submitter have it."""
        return f"{self.head_service}.{self.namespace}.svc.cluster.local"

    @property
    def has_token(self) -> bool:
        return bool(self.spec.get("authOptions", {}).get("mode") == "token")


def make_cluster(resource: Tree, suffix: str) -> Cluster:
    """The RayCluster of a RayJob, a RayService or a RayCluster."""
    kind, meta, spec = resource["kind"], resource["metadata"], copy.deepcopy(resource["spec"])
    if kind == "RayCluster":
        return Cluster(kind, meta["name"], meta["name"], meta["namespace"], spec)
    inner = spec["rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"]
    return Cluster(kind, meta["name"], f"{meta['name']}-{suffix}", meta["namespace"], inner)


def make_services(cluster: Cluster) -> list[Service]:
    """The names that KubeRay makes. A RayJob's and a RayService's own head service knows no label
    of the head's template: it selects `app.kubernetes.io/name: kuberay`.
    """
    labels = cluster.spec["headGroupSpec"]["template"]["metadata"].get("labels", {})
    selector = {
        "ray.io/cluster": cluster.name,
        "ray.io/node-type": "head",
        "ray.io/identifier": f"{cluster.name}-head"[-63:],
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    name_label = labels.get("app.kubernetes.io/name", "kuberay")
    services = [
        Service(cluster.head_service, {**selector, "app.kubernetes.io/name": name_label}, True)
    ]
    if cluster.kind != "RayCluster":
        services.append(Service(f"{cluster.owner}-head-svc", selector, True))
    if cluster.kind == "RayService":
        serving = {"ray.io/cluster": cluster.name, "ray.io/serve": "true"}
        services.append(Service(f"{cluster.owner}-serve-svc", serving))
    return services


def make_head(cluster: Cluster) -> tuple[dict[str, str], Tree]:
    """Labels and specification of the head's pod."""
    group = cluster.spec["headGroupSpec"]
    params = {"dashboard-host": "0.0.0.0", **group["rayStartParams"]}
    spec = copy.deepcopy(group["template"]["spec"])
    container = spec["containers"][0]
    if cluster.spec.get("enableInTreeAutoscaling"):
        params["no-monitor"] = "true"
        is_v2 = cluster.spec.get("autoscalerOptions", {}).get("version") == "v2"
        _add_variables(container, RAY_enable_autoscaler_v2="true" if is_v2 else "false")
    if redis := cluster.spec.get("gcsFaultToleranceOptions"):
        _add_variables(container, RAY_external_storage_namespace=cluster.name)
        _add_variables(container, RAY_REDIS_ADDRESS=redis["redisAddress"])
        if password := redis.get("redisPassword"):
            params["redis-password"] = "$REDIS_PASSWORD"
            container["env"].append({"name": "REDIS_PASSWORD", **password})
    command = _set_start_command(container, "ray start --head", params)
    _add_ray_variables(cluster, container, command, address="127.0.0.1")
    _add_probes(cluster, container, is_worker=False)
    return _label(cluster, "head", "headgroup", group), spec


def make_worker(cluster: Cluster, group: Tree) -> tuple[dict[str, str], Tree]:
    """A worker's labels and specification, with the init container that waits for the head."""
    spec = copy.deepcopy(group["template"]["spec"])
    container = spec["containers"][0]
    params = {"address": f"{cluster.head_address}:{GCS_PORT}", **group["rayStartParams"]}
    wait = {
        "name": "wait-gcs-ready",
        "image": container["image"],
        "command": _SHELL,
        "args": [_WAIT.format(address=f"{cluster.head_address}:{GCS_PORT}")],
        "securityContext": container["securityContext"],
        "env": copy.deepcopy(container["env"]),
        "volumeMounts": container["volumeMounts"],
        "resources": {"limits": {"cpu": "200m", "memory": "256Mi"}},
    }
    _add_variables(wait, FQ_RAY_IP=cluster.head_address, RAY_IP=cluster.head_service)
    _add_token(cluster, wait)
    spec["initContainers"] = [*spec.get("initContainers", []), wait]
    if cluster.spec.get("gcsFaultToleranceOptions"):
        _add_variables(container, RAY_gcs_rpc_server_reconnect_timeout_s="600")
    command = _set_start_command(container, "ray start", params)
    _add_variables(container, FQ_RAY_IP=cluster.head_address, RAY_IP=cluster.head_service)
    _add_ray_variables(cluster, container, command, address=cluster.head_address)
    _add_probes(cluster, container, is_worker=True)
    return _label(cluster, "worker", group["groupName"], group), spec


def make_submitter(job: Tree, cluster: Cluster, job_id: str) -> tuple[dict[str, str], Tree]:
    """Labels and specification of the pod that hands a RayJob's command to the head."""
    template = copy.deepcopy(job["spec"]["submitterPodTemplate"])
    container = template["spec"]["containers"][0]
    dashboard = f"{cluster.head_address}:8265"
    address = f"http://{dashboard}"
    health = (
        "python -c \"import urllib.request; r=urllib.request.urlopen('"
        f"{address}/api/gcs_healthz', timeout=10); exit(0 if b'success' in r.read() else 1)\""
    )
    default = [
        f'until {health} >/dev/null 2>&1 ; do echo "Waiting for Ray Dashboard GCS to become healthy'
        f' at {address} ..." ; sleep 2 ; done ; '
        f"if ! ray job status --address {address} {job_id} >/dev/null 2>&1 ; then "
        f"ray job submit --address {address} --no-wait --submission-id {job_id}"
        f" -- {job['spec']['entrypoint'].strip()} ; fi ; "
        f"ray job logs --address {address} --follow {job_id}"
    ]
    if "command" not in container:
        container |= {"command": ["/bin/bash", "-ce", "--"], "args": default}
    _add_variables(container, PYTHONUNBUFFERED="1", RAY_DASHBOARD_ADDRESS=dashboard,
                   RAY_JOB_SUBMISSION_ID=job_id)  # fmt: skip
    _add_token(cluster, container)
    return template.get("metadata", {}).get("labels", {}), template["spec"]


def _label(cluster: Cluster, node_type: str, group_name: str, group: Tree) -> dict[str, str]:
    own = {
        "ray.io/node-type": node_type,
        "ray.io/group": group_name,
        "ray.io/cluster": cluster.name,
    }
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/identifier": f"{cluster.name}-{node_type}"[-63:],
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        **group["template"]["metadata"].get("labels", {}),
        **own,
    }
    if cluster.kind == "RayService":
        labels["ray.io/serve"] = "false" if node_type == "head" else "true"
    return labels


def _set_start_command(container: Tree, verb: str, given: dict[str, str]) -> str:
    limits = container["resources"]["limits"]
    params = {
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        "num-cpus": str(-int(-parse_quantity(limits["cpu"]) // 1)),
        "memory": str(int(parse_quantity(limits["memory"]))),
        **given,
        "block": "true",
    }
    command = verb
    for option, value in sorted(params.items()):
        if value in ("true", "false") and option not in _VALUED:
            command += f"  --{option} " if value == "true" else ""
        else:
            command += f"  --{option}={value} "
    container["command"] = _SHELL
    container["args"] = [f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"]
    return command


def _add_ray_variables(cluster: Cluster, container: Tree, command: str, address: str) -> None:
    for name, path in (
        ("RAY_CLUSTER_NAME", "metadata.labels['ray.io/cluster']"),
        ("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
        ("RAY_CLOUD_INSTANCE_ID", "metadata.name"),
        ("RAY_NODE_TYPE_NAME", "metadata.labels['ray.io/group']"),
    ):
        container["env"].append({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
    _add_variables(container, KUBERAY_GEN_RAY_START_CMD=command, RAY_PORT=GCS_PORT)
    if cluster.kind == "RayService":
        _add_variables(container, RAY_timeout_ms_task_wait_for_death_info="0",
                       RAY_gcs_server_request_timeout_seconds="5",
                       RAY_SERVE_KV_TIMEOUT_S="5")  # fmt: skip
    _add_variables(container, RAY_ADDRESS=f"{address}:{GCS_PORT}",
                   RAY_USAGE_STATS_KUBERAY_IN_USE="1",
                   RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE="1")  # fmt: skip
    _add_token(cluster, container)


def _add_token(cluster: Cluster, container: Tree) -> None:
    if cluster.has_token:
        _add_variables(container, RAY_AUTH_MODE="token")
        reference = {"name": cluster.name[-50:], "key": "auth_token"}
        container["env"].append(
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": reference}}
        )


def _add_probes(cluster: Cluster, container: Tree, *, is_worker: bool) -> None:
    """KubeRay's own probes, where the manifest has none: one address of Ray's since 2.53."""
    health = {"httpGet": {"path": "/api/healthz", "port": 52365}}
    timeout_s = 2 if is_worker else 5
    container.setdefault(
        "livenessProbe",
        {**health, "initialDelaySeconds": 30, "periodSeconds": 5, "timeoutSeconds": timeout_s,
         "failureThreshold": 120},
    )  # fmt: skip
    if "readinessProbe" in container:
        return
    if is_worker and cluster.kind == "RayService":
        urls = ("localhost:52365/api/local_raylet_healthz", "localhost:8000/-/healthz")
        asks = [
            f"wget --tries 1 -T {timeout} -q -O- http://{url} | grep success"
            for timeout, url in zip((2, 10), urls, strict=True)
        ]
        health = {"exec": {"command": ["bash", "-c", " && ".join(asks)]}}
    container["readinessProbe"] = {
        **health, "initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": timeout_s,
        "failureThreshold": 1 if "exec" in health else 10,
    }  # fmt: skip


def _add_variables(container: Tree, **values: str) -> None:
    """Append variables, those that are there already excepted."""
    variables = container.setdefault("env", [])
    names = {entry["name"] for entry in variables}
    variables.extend({"name": k, "value": v} for k, v in values.items() if k not in names)
