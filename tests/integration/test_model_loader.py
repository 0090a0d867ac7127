"""The Job that loads a model once for all pods: its program, and what the component renders."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.hub_server import HubServer, read_folder
from tests.integration.seaweed import Seaweed
from tests.integration.test_identities import render
from tests.integration.test_k8s import KUBERNETES, pod_specs

UNET = "unet/diffusion_pytorch_model.safetensors"
# What a run's driver does with the model of its recipe.
_FIND = """
import sys
from dreambooth_ray.models.model_mirror import share_model
from dreambooth_ray.storage.store import Store
print(share_model("someone/tiny", "model.uri", Store(sys.argv[1])))
"""


@pytest.mark.fault
def test_a_model_is_loaded_once_and_found_by_runs(
    seaweed: Seaweed, toy_model: Path, tmp_path: Path
) -> None:
    storage = f"{seaweed.make_bucket('models')}/{uuid.uuid4().hex[:8]}"
    recipe = {"model": {"uri": "someone/tiny"}, "storage": {"uri": storage},
              "subject": {"photos": "s3://bucket/photographs", "class_noun": "dog"}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    hub = HubServer()
    hub.add("someone/tiny", read_folder(toy_model))
    environment = os.environ | seaweed.environment | {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub"),
        "DREAMBOOTH_CACHE": str(tmp_path / "volume"),
    }  # fmt: skip

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments], env=environment, text=True, capture_output=True,
            check=True,
        ).stdout.strip()  # fmt: skip

    folder = run("-m", "cluster.model_loader", str(tmp_path / "recipe.yaml"))
    weights = Path(folder) / UNET
    assert weights.read_bytes() == (toy_model / UNET).read_bytes()
    loaded, num_bytes = weights.stat(), hub.bytes_sent[UNET]
    assert run("-c", _FIND, storage) == folder
    hub.close()
    assert hub.bytes_sent[UNET] == num_bytes
    found = weights.stat()
    assert (found.st_ino, found.st_mtime_ns) == (loaded.st_ino, loaded.st_mtime_ns)


def test_all_pods_of_a_run_have_the_volume_as_their_cache(tmp_path: Path) -> None:
    manifests = render(tmp_path, "base/platform", "base/rayjob", "components/model-volume")
    for resource in manifests:
        if resource["kind"] in ("Job", "PersistentVolumeClaim"):
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    (claim,) = [r["metadata"]["name"] for r in manifests if r["kind"] == "PersistentVolumeClaim"]
    cached = [spec for spec in pod_specs(manifests) if _names_cache(spec)]
    # The Job's pod, the head and the workers that the component knows.
    assert len(cached) == 4
    with_volume = []
    for spec in cached:
        (container,) = spec["containers"]
        cache = next(e["value"] for e in container["env"] if e["name"] == "DREAMBOOTH_CACHE")
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        if volume := volumes.get(mounts.get(cache, "")):
            assert volume["persistentVolumeClaim"] == {"claimName": claim}
            with_volume.append(spec)
    # Workers without a GPU, the second group, are left out of a gang.
    assert len(with_volume) == 3


def _names_cache(spec: dict[str, list[dict[str, list[dict[str, str]]]]]) -> bool:
    env = spec["containers"][0].get("env", [])
    return any(entry["name"] == "DREAMBOOTH_CACHE" for entry in env)
