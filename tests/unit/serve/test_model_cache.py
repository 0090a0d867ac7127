import json
import shutil
from pathlib import Path

import pytest

from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.errors import CapacityError, CheckpointError, ConfigError
from dreambooth_ray.models import lora, weight_cache
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import parse_bundle_manifest
from serve.adapter_cache import AdapterCache
from serve.allowed_adapters import AdapterFolder
from serve.loaded_model import estimate_loaded_bytes
from serve.model_cache import ModelCache
from serve.replica_messages import Artifact
from serve.subject_catalog import ServedSubject
from tests.hub_server import HubServer

UNET = "unet/diffusion_pytorch_model.safetensors"


def _model_cache(tmp_path: Path, memory_bytes: int) -> ModelCache:
    return ModelCache(
        {"toyworld": "toyworld"}, str(tmp_path), tmp_path / "cache", Engine,
        memory_bytes=memory_bytes, adapters=AdapterCache(2, 2**30),
        folder=AdapterFolder(None, 1.0),
    )  # fmt: skip


def _publish(tmp_path: Path, run_id: str, model: Path) -> Artifact:
    store = Store(str(tmp_path)).sub(f"runs/{run_id}")
    text = manifest.upload_folder_with_manifest(store, "bundle", model, {"kind": "bundle"})
    version = parse_bundle_manifest(run_id, text)
    assert version is not None
    return ServedSubject.from_subject_version(version).artifact


def test_bytes_are_those_of_the_loaded_weights(toy_model: Path) -> None:
    parts = load_components(toy_model)
    loaded_parts = (parts.unet, parts.vae, parts.text_encoder)
    weights = sum(p.numel() * 4 for part in loaded_parts for p in part.parameters())
    assert estimate_loaded_bytes(toy_model, 4) == pytest.approx(weights, rel=0.02)


def test_the_longest_unused_model_goes_first_and_never_one_in_use(
    tmp_path: Path, toy_model: Path
) -> None:
    size = estimate_loaded_bytes(toy_model, 4)
    one, two = (_publish(tmp_path, run, toy_model) for run in ("one", "two"))
    model_cache = _model_cache(tmp_path, 2 * size)
    base = Artifact("toyworld", uri="toyworld")
    with model_cache.lease(base) as lease:
        assert lease.weights_sha256 == model_hash(toy_model)
    with model_cache.lease(one):
        with model_cache.lease(two):
            assert model_cache.loaded_ids == (one.id, two.id)
            with pytest.raises(CapacityError, match="others draw with"), model_cache.lease(base):
                pass
        with model_cache.lease(base):
            assert set(model_cache.loaded_ids) == {one.id, "toyworld"}
    assert model_cache.size_bytes == 2 * size
    with pytest.raises(CapacityError, match=r"replicas\.memory_bytes"):
        _model_cache(tmp_path, size - 1)._load_artifact(base)


def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, toy_model: Path) -> None:
    artifact = _publish(tmp_path, "dog", toy_model)
    bundle = tmp_path / "runs/dog/bundle"
    weights = bundle / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    model_cache = _model_cache(tmp_path, 2**40)
    with (
        pytest.raises(CheckpointError, match="differs from its manifest"),
        model_cache.lease(artifact),
    ):
        pass
    content = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="has changed"), model_cache.lease(artifact):
        pass
    shutil.rmtree(bundle)
    with pytest.raises(CheckpointError, match="no longer"), model_cache.lease(artifact):
        pass
    assert model_cache.loaded_ids == ()
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.filterwarnings("ignore:Adapter .* was active:UserWarning")
def test_adapters_share_their_base_and_the_longest_unused_goes(
    tmp_path: Path, toy_model: Path
) -> None:
    artifacts = [_publish_adapter(tmp_path, f"dog{k}", toy_model, k) for k in range(3)]
    model_cache = _model_cache(tmp_path, 2**40)
    with model_cache.lease(artifacts[0]) as first:
        with model_cache.lease(artifacts[1]) as second:
            assert second.engine is first.engine
            assert first.base_sha256 == second.base_sha256 == model_hash(toy_model)
            assert first.weights_sha256 != second.weights_sha256
            with pytest.raises(CapacityError, match="are in use"), model_cache.lease(artifacts[2]):
                pass
        with model_cache.lease(artifacts[2]) as third:
            assert third.engine is first.engine
        assert model_cache.loaded_ids == ("toyworld", artifacts[0].id, artifacts[2].id)
    other = _publish_adapter(tmp_path, "cat", toy_model, 9, base_hash="0" * 64)
    with pytest.raises(ConfigError, match="not served here"), model_cache.lease(other):
        pass


def _publish_adapter(
    tmp_path: Path, run_id: str, model: Path, seed: int, base_hash: str | None = None
) -> Artifact:
    unet, settings = load_components(model).unet, LoraConfig(rank=2, target_modules=("to_q",))
    lora.inject_adapters(unet, settings, settings.target_modules, seed)
    folder = tmp_path / "made" / run_id
    lora.save_adapters(unet, folder / "adapter" / "unet")
    about: dict[str, object] = {
        "kind": "adapter",
        "base_model": "toyworld",
        "base_hash": base_hash or model_hash(model),
    }
    text = manifest.upload_folder_with_manifest(
        Store(str(tmp_path)).sub(f"runs/{run_id}"), "bundle", folder, about
    )
    version = parse_bundle_manifest(run_id, text)
    assert version is not None
    return ServedSubject.from_subject_version(version).artifact


def test_replicas_of_two_hosts_ask_the_hub_once(
    hub: HubServer,
    published_files: dict[str, bytes],
    tmp_path: Path,
    toy_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"someone/tiny@{hub.add('someone/tiny', published_files)}"
    for host in ("one", "two"):
        monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / host))
        monkeypatch.setattr(weight_cache, "_held_locks", {})
        model_cache = ModelCache(
            {"tiny": uri}, str(tmp_path / "storage"), tmp_path / "cache", Engine,
            memory_bytes=2**40, adapters=AdapterCache(2, 2**30),
        folder=AdapterFolder(None, 1.0), shares_models=True,
        )  # fmt: skip
        with model_cache.lease(Artifact("tiny", uri=uri)) as lease:
            assert lease.weights_sha256 == model_hash(toy_model)
        assert list((tmp_path / host / "models").glob(f"*/{UNET}"))
    assert hub.bytes_sent[UNET] <= len(published_files[UNET]) + 2**18
