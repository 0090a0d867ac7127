import pytest

from dreambooth_ray.config.load import load_serve_config
from dreambooth_ray.errors import ConfigError
from serve.base_models import resolve_model_uris
from tests.hub_server import HubServer

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_models_of_the_hub_are_pinned_and_looked_at(
    hub: HubServer, published_files: dict[str, bytes]
) -> None:
    commit = hub.add("someone/tiny", published_files)
    uris = {"one": "someone/tiny", "two": "toyworld?vae=someone/tiny", "toy": "toyworld"}
    config = load_serve_config(None, [f"models.{name}={uri}" for name, uri in uris.items()])
    assert resolve_model_uris(config) == {
        "one": f"someone/tiny@{commit}",
        "two": f"toyworld?vae=someone/tiny@{commit}",
        "toy": "toyworld",
    }
    assert hub.bytes_sent[UNET] < len(published_files[UNET]) // 10


def test_one_that_can_not_be_loaded_is_named_by_its_key(
    hub: HubServer, published_files: dict[str, bytes]
) -> None:
    hub.add("someone/tiny", published_files, "gated")
    with pytest.raises(ConfigError, match=r"models\.one='someone/tiny@.*is gated: accept"):
        resolve_model_uris(load_serve_config(None, ["models.one=someone/tiny"]))
