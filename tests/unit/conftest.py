from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from dreambooth_ray.models import hub_files
from tests.hub_server import HubServer, read_folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """What this process takes for the hub, with an empty cache and no token."""
    server = HubServer()
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub_files, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    hub_files._find_commit.cache_clear()
    hub_files.open_hub_model.cache_clear()
    yield server
    huggingface_hub.close_session()
    server.close()


@pytest.fixture
def published_files(toy_model: Path) -> dict[str, bytes]:
    """The toy, and what a published repository has beside what is read."""
    junk = b"x" * 1000
    return read_folder(toy_model) | {
        "README.md": b"# tiny", "v1-5-pruned.safetensors": junk, "v1-5-pruned.ckpt": junk,
        "unet/diffusion_pytorch_model.bin": junk, "unet/diffusion_flax_model.msgpack": junk,
        "unet/diffusion_pytorch_model.fp16.safetensors": junk, "unet/model.onnx": junk,
        "safety_checker/model.safetensors": junk, "safety_checker/config.json": b"{}",
    }  # fmt: skip
