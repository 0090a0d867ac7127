import shutil
from pathlib import Path

import pytest

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models import hub_files, weight_cache
from dreambooth_ray.models.model_directory import list_loaded_files, model_directory, model_hash
from dreambooth_ray.models.model_mirror import locate_model, publish_model, share_model
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from tests.hub_server import HubServer, read_folder

UNET = "unet/diffusion_pytorch_model.safetensors"
ID = "someone/tiny"


@pytest.fixture
def move_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """This process becomes one of another host: with an empty cache, and nothing in use."""

    def move(host: str) -> None:
        monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / host))
        monkeypatch.setattr(weight_cache, "_held_locks", {})
        hub_files.open_hub_model.cache_clear()

    return move


def test_a_model_of_the_hub_is_fetched_by_one_host_for_all(
    hub: HubServer, published_files: dict[str, bytes], tmp_path: Path, move_to, toy_model: Path
) -> None:  # type: ignore[no-untyped-def]
    commit = hub.add(ID, published_files)
    storage = Store(str(tmp_path / "storage"))
    folders = []
    for host in ("one", "two", "three"):
        move_to(host)
        folders.append(share_model(f"{ID}@{commit}", "model.uri", storage))
    assert len(set(folders)) == 3
    assert hub.bytes_sent[UNET] <= len(published_files[UNET]) + 2**18
    assert all(read_folder(f) == read_folder(toy_model) for f in folders)
    assert {model_hash(folder) for folder in folders} == {model_hash(toy_model)}
    manifest.remove_artifact(storage, paths.model(model_hash(toy_model)))
    move_to("four")
    assert read_folder(share_model(f"{ID}@{commit}", "model.uri", storage)) == read_folder(
        toy_model
    )
    assert manifest.find_damage(storage, paths.model(model_hash(toy_model))) is None


def test_a_host_without_the_folder_takes_the_model_from_storage(
    toy_model: Path, tmp_path: Path, move_to
) -> None:  # type: ignore[no-untyped-def]
    own = tmp_path / "models" / "mine"
    shutil.copytree(toy_model, own)
    (own / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    storage, run = Store(str(tmp_path / "storage")), str(tmp_path / "storage" / "runs" / "one")
    digest = model_hash(own)
    move_to("one")
    with pytest.raises(CheckpointError, match=r"model\.uri: /nowhere is not on .*no copy of it"):
        locate_model("/nowhere", digest, run)
    assert share_model(str(own), "model.uri", storage) == own
    publish_model(own, digest, storage)
    assert len([n for n in storage.names(paths.MODELS) if n.endswith(".json")]) == 1
    assert locate_model(str(own), digest, run) == own
    move_to("two")
    there = locate_model("/nowhere", digest, run)
    assert read_folder(there) == read_folder(toy_model)
    assert model_hash(there) == digest
    assert locate_model("/nowhere", digest, f"{storage.uri}/priors/{'0' * 32}") == there


def test_parts_of_several_sources_are_one_model_in_storage(
    toy_model: Path, tmp_path: Path, move_to
) -> None:  # type: ignore[no-untyped-def]
    move_to("one")
    shutil.copytree(toy_model / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text(
        (toy_model / "vae" / "config.json").read_text().replace("{", '{"_own": 1,', 1)
    )
    composed = model_directory(f"toyworld?vae={tmp_path / 'vae'}")
    assert set(list_loaded_files(composed)) == set(list_loaded_files(toy_model))
    storage = Store(str(tmp_path / "storage"))
    publish_model(composed, model_hash(composed), storage)
    move_to("two")
    there = locate_model("/nowhere", model_hash(composed), f"{storage.uri}/runs/one")
    assert model_hash(there) == model_hash(composed) != model_hash(toy_model)
