"""An API server for kubectl on this machine: it keeps objects, and lets in what a Role allows.

Discovery, lists by label, get, create, merge patches, deletion in the foreground, pods' logs: what
kubectl asks for RayJobs and ConfigMaps. No admission, no schema, no controller: tests say how a
RayJob stands, as KubeRay would.
"""

import contextlib
import datetime
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import yaml

Tree = dict[str, Any]
Key = tuple[str, str, str]
KINDS = {"": {"configmaps": "ConfigMap", "pods": "Pod"}, "ray.io": {"rayjobs": "RayJob"}}
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


@dataclass
class KubernetesApi:
    """Objects by resource, namespace and name. rules: of a Role, for everybody who asks"""

    rules: list[Tree]
    objects: dict[Key, Tree] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, resource: str, tree: Tree) -> Tree:
        metadata = tree["metadata"]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # As a server: a clock of whole seconds, and a new identity with each creation.
        metadata |= {"creationTimestamp": now.replace("+00:00", "Z"), "uid": str(uuid.uuid4())}
        metadata["resourceVersion"] = str(len(self.asked))
        self.objects[resource, metadata["namespace"], metadata["name"]] = tree
        return tree

    def add_pod(self, name: str, namespace: str, labels: dict[str, str], log: str) -> None:
        meta = {"name": name, "namespace": namespace, "labels": labels}
        spec = {"containers": [{"name": "ray-job-submitter", "image": "dreambooth-ray"}]}
        self.add("pods", {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        self.logs[name] = log

    def set_status(self, name: str, **status: str) -> None:
        """Say how the RayJob of a name stands, as KubeRay does."""
        (job,) = (tree for key, tree in self.objects.items() if key[::2] == ("rayjobs", name))
        job["status"] = status

    def allows(self, verb: str, group: str, resource: str) -> bool:
        return any(
            verb in rule["verbs"] and group in rule["apiGroups"] and resource in rule["resources"]
            for rule in self.rules
        )


class ApiError(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Handler(BaseHTTPRequestHandler):
    """One request."""

    api: ClassVar[KubernetesApi]
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        try:
            code, content = 200, self.respond()
        except ApiError as error:
            code = error.code
            content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                       "reason": error.reason, "message": str(error)}  # fmt: skip
        is_text = isinstance(content, str)
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if is_text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer  # noqa: N815 the library's names

    def log_message(self, *arguments: object) -> None:
        """Nothing: a test's output is not for it."""

    def respond(self) -> Tree | str:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or "{}")
        parts = url.path.strip("/").split("/")
        is_core = parts[0] == "api"
        group, words = ("", parts[2:]) if is_core else ("".join(parts[1:2]), parts[3:])
        if parts[0] not in ("api", "apis") or not words:
            return discover(parts)
        if len(words) < 3:
            raise ApiError(403, "Forbidden", f"cannot look at {url.path}")
        _, namespace, resource, *names = words
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        return self.act(group, resource, namespace, names, query, body)

    def act(
        self, group: str, resource: str, namespace: str, names: list[str], query: Tree, body: Tree
    ) -> Tree | str:
        verb = VERBS[self.command] if names or self.command != "GET" else "list"
        asked = "/".join([resource, *names[1:]])
        self.api.asked.append(f"{verb} {asked}")
        if not self.api.allows(verb, group, asked):
            raise ApiError(403, "Forbidden", f"cannot {verb} {asked} in {namespace}")
        if verb == "list":
            return self.list(group, resource, namespace, query.get("labelSelector", ""))
        if verb == "create":
            name = body["metadata"]["name"]
            if (resource, namespace, name) in self.api.objects:
                raise ApiError(409, "AlreadyExists", f'{resource} "{name}" already exists')
            body["metadata"].setdefault("namespace", namespace)
            return self.api.add(resource, body)
        key = (resource, namespace, names[0])
        if key not in self.api.objects:
            raise ApiError(404, "NotFound", f'{resource} "{names[0]}" not found')
        if names[1:] == ["log"]:
            return self.api.logs[names[0]]
        if verb == "patch":
            self.api.objects[key] = merge(self.api.objects[key], body)
        if verb == "delete":
            return self.api.objects.pop(key)
        return self.api.objects[key]

    def list(self, group: str, resource: str, namespace: str, selector: str) -> Tree:
        labels = dict(pair.split("=") for pair in selector.split(",") if pair)
        kind = KINDS[group][resource]
        items = [
            tree
            for key, tree in self.api.objects.items()
            if key[:2] == (resource, namespace)
            and labels.items() <= tree["metadata"].get("labels", {}).items()
        ]
        version = f"{group}/v1".lstrip("/")
        return {"apiVersion": version, "kind": f"{kind}List", "metadata": {}, "items": items}


def discover(parts: list[str]) -> Tree:
    """What kubectl asks first: which groups there are, and what is in them."""
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    is_schema = parts[:2] == ["openapi", "v3"]
    if is_schema and not parts[2:]:
        places = ("api/v1", "apis/ray.io/v1")
        return {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}"} for p in places}}
    parts = parts[2:] if is_schema else parts
    version = {"groupVersion": "ray.io/v1", "version": "v1"}
    if parts == ["apis"]:
        group = {"name": "ray.io", "versions": [version], "preferredVersion": version}
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
    groups = {("api", "v1"): "", ("apis", "ray.io", "v1"): "ray.io"}
    if tuple(parts) not in groups:
        raise ApiError(404, "NotFound", f"no {'/'.join(parts)} here")
    group_name = groups[tuple(parts)]
    if is_schema:
        return describe_fields(group_name)
    resources = [
        {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind,
         "verbs": ["get", "list", "create", "patch", "delete"]}
        for name, kind in KINDS[group_name].items()
    ]  # fmt: skip
    version_name = f"{group_name}/v1".lstrip("/")
    return {"kind": "APIResourceList", "groupVersion": version_name, "resources": resources}


def describe_fields(group: str) -> Tree:
    """Says of each kind that the server validates its fields: kubectl then does not."""
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {
        f"/{name}": {
            "patch": {
                "parameters": [parameter],
                "x-kubernetes-group-version-kind": {"group": group, "version": "v1", "kind": kind},
                "responses": {},
            }
        }
        for name, kind in KINDS[group].items()
    }
    return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": paths}


def merge(tree: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396); of ConfigMaps a strategic one says the same."""
    if not isinstance(tree, dict) or not isinstance(patch, dict):
        return patch
    merged = {**tree, **{key: merge(tree.get(key), value) for key, value in patch.items()}}
    return {key: value for key, value in merged.items() if value is not None}


@contextlib.contextmanager
def serve_kubernetes_api(folder: Path, rules: list[Tree]) -> Iterator[tuple[KubernetesApi, Path]]:
    """The server, and a kubeconfig that leads to it."""
    api = KubernetesApi(rules)
    handler = type("OwnHandler", (Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here",
                      "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "somebody", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "somebody"}}],
    }  # fmt: skip
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    try:
        yield api, kubeconfig
    finally:
        server.shutdown()
        server.server_close()
