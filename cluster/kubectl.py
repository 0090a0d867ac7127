"""kubectl, which knows where the cluster is and who asks: KUBECONFIG and its current context."""

import json
import re
import shutil
import subprocess
from typing import Any

from dreambooth_ray.errors import CapacityError

_REQUEST_S = 30
# `replace --force` waits for what it deletes.
_CALL_S = 300
# klog's: letter of the level, month and day, time.
_LOG_LINE = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d")


def run_kubectl(*arguments: str, text: str = "") -> str:
    """What a kubectl command prints. text: its standard input

    raises: CapacityError if kubectl is missing, does not end, or refuses, with its words
    """
    if not shutil.which("kubectl"):
        raise CapacityError("kubectl is not installed, and runs on Kubernetes are asked for by it")
    command = ["kubectl", f"--request-timeout={_REQUEST_S}s", *arguments]
    command_name = f"kubectl {arguments[0]}"
    try:
        kubectl_result = subprocess.run(
            command, input=text, text=True, capture_output=True, timeout=_CALL_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CapacityError(
            f"{command_name} has not ended in {_CALL_S} s; is the cluster up?"
        ) from error
    if kubectl_result.returncode:
        raise CapacityError(f"{command_name} failed: {_find_reason(kubectl_result.stderr)}")
    return kubectl_result.stdout


def _find_reason(error_output: str) -> str:
    """The words of a refusal, in one line, without the log of kubectl's own tries before it."""
    error_lines = [line for line in error_output.splitlines() if not _LOG_LINE.match(line)]
    return " ".join(" ".join(error_lines or [error_output]).split())


def read_kubernetes_objects(*arguments: str) -> list[dict[str, Any]]:
    """The items of `kubectl get` with these arguments. raises: CapacityError"""
    json_text = run_kubectl("get", *arguments, "--ignore-not-found", "--output=json")
    tree = json.loads(json_text or "{}")
    kubernetes_resources: list[dict[str, Any]] = tree.get("items", [tree] if tree else [])
    return kubernetes_resources
