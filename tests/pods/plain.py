"""A pod's specification as our manifests write it, for one command."""

from tests.pods.manifest import Tree


def make_pod_spec(image: str, *command: str, memory: str = "4Gi") -> Tree:
    """User 1000, a root that can't be written, and room in /tmp, /dev/shm and the home folder."""
    volumes = {"tmp": "/tmp", "home": "/home/ray", "shm": "/dev/shm"}
    security = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "securityContext": {"fsGroup": 1000},
        "containers": [
            {
                "name": "main",
                "image": image,
                "command": list(command),
                "env": [
                    {"name": "HOME", "value": "/home/ray"},
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                ],
                "resources": {"limits": {"cpu": "2", "memory": memory}},
                "securityContext": security,
                "volumeMounts": [{"name": k, "mountPath": v} for k, v in volumes.items()],
            }
        ],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "5Gi"}},
            {"name": "home", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
