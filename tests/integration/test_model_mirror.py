"""Hosts that share an object store and nothing else: each a process with a cache of its own."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_directory import model_directory, model_hash, model_outline
from dreambooth_ray.models.model_mirror import upload_local_model
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from tests.hub_server import HubServer, read_folder
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at

UNET = "unet/diffusion_pytorch_model.safetensors"
_SHARE = """
import sys
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.model_mirror import share_model
from dreambooth_ray.storage.store import Store
sys.stdin.readline()
print(model_hash(share_model("someone/tiny", "model.uri", Store(sys.argv[1]))))
"""


@pytest.fixture
def hub(toy_model: Path) -> Iterator[HubServer]:
    server = HubServer()
    server.add("someone/tiny", read_folder(toy_model))
    yield server
    server.close()


@pytest.mark.fault
def test_a_model_in_an_object_store(
    seaweed: Seaweed, tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    with pointed_at(seaweed.environment):
        uri = f"{seaweed.make_bucket('models')}/{uuid.uuid4().hex[:8]}/sd"
        manifest.upload_files(Store(uri), "one", toy_model)
        outline = model_outline(f"{uri}/one")
        assert (outline / UNET).stat().st_size == (toy_model / UNET).stat().st_size
        assert not (tmp_path / "cache" / "models").exists()
        assert read_folder(model_directory(f"{uri}/one")) == read_folder(toy_model)
        with pytest.raises(ConfigError, match=r"model\.uri='s3://.*/none'.*has no files"):
            model_outline(f"{uri}/none")


@pytest.mark.fault
def test_a_model_that_was_sent_is_read_where_its_folder_is_not(
    seaweed: Seaweed, tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mine"
    shutil.copytree(toy_model, own)
    with pointed_at(seaweed.environment):
        storage = Store(f"{seaweed.make_bucket('models')}/{uuid.uuid4().hex[:8]}")
        uri = upload_local_model(str(own), "model.uri", storage)
        assert upload_local_model(str(own), "model.uri", storage) == uri
        shutil.rmtree(own)
        monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
        assert (model_outline(uri) / UNET).stat().st_size == (toy_model / UNET).stat().st_size
        assert not (tmp_path / "cache" / "models").exists()
        assert model_hash(model_directory(uri)) == model_hash(toy_model)


@pytest.mark.fault
def test_hosts_that_begin_at_once_ask_the_hub_for_the_weights_once(
    hub: HubServer, seaweed: Seaweed, tmp_path: Path, toy_model: Path
) -> None:
    storage = f"{seaweed.make_bucket('models')}/{uuid.uuid4().hex[:8]}"
    environment = os.environ | seaweed.environment | {"HF_ENDPOINT": hub.endpoint}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", _SHARE, storage], text=True, cwd=tmp_path,
            env=environment | {"DREAMBOOTH_CACHE": str(tmp_path / name), "HF_HOME": str(tmp_path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for name in ("one", "two", "three")
    ]  # fmt: skip
    for host in hosts:
        assert host.stdin
        host.stdin.write("go\n")
        host.stdin.flush()
    answers = [host.communicate(timeout=300) for host in hosts]
    assert all(host.returncode == 0 for host in hosts), answers
    assert len({out for out, _ in answers}) == 1, answers
    size_bytes, header_bytes = (toy_model / UNET).stat().st_size, 2**18
    assert size_bytes <= hub.bytes_sent[UNET] <= size_bytes + header_bytes
    for name in ("one", "two", "three"):
        (copy,) = (tmp_path / name / "models").glob(f"*/{UNET}")
        assert copy.read_bytes() == (toy_model / UNET).read_bytes()
