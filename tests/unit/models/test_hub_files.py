"""The real client against a small hub on loopback."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, snapshot_download

from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.models import hub_files
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.hub_errors import HubModel
from dreambooth_ray.models.model_directory import model_directory, model_hash, model_outline
from dreambooth_ray.models.model_source import pin_source
from dreambooth_ray.models.weight_cache import fetched_models_folder
from tests.families.tiny_models import build_tiny
from tests.hub_server import STRANGER, TOKEN, HubServer, read_folder
from tests.published_models import SD15, build_published

UNET = "unet/diffusion_pytorch_model.safetensors"
ID = "someone/tiny"


def test_a_model_of_the_hub_is_fetched_with_what_is_read_of_it_alone(
    hub: HubServer, published_files: dict[str, bytes], toy_model: Path
) -> None:
    hub.add(ID, published_files)
    directory = model_directory(ID)
    assert read_folder(directory) == read_folder(toy_model)
    assert model_hash(directory) == model_hash(toy_model)
    weight = load_components(directory).unet.conv_in.weight
    assert torch.equal(weight, load_components(toy_model).unet.conv_in.weight)
    before = dict(hub.requests)
    assert model_directory(ID) == directory
    assert dict(hub.requests) == before, "a second look asks nobody"


def test_an_outline_is_looked_at_before_weights_are_fetched(
    hub: HubServer, published_files: dict[str, bytes], toy_model: Path
) -> None:
    hub.add(ID, published_files)
    outline = model_outline(ID)
    assert outline != model_outline("toyworld")
    assert (outline / UNET).stat().st_size == len(published_files[UNET])
    assert hub.bytes_sent[UNET] < len(published_files[UNET]) // 10
    config = json.loads(published_files["unet/config.json"]) | {"cross_attention_dim": 17}
    hub.repos[ID].commit(
        published_files | {"unet/config.json": json.dumps(config).encode()}, "broken"
    )
    with pytest.raises(ConfigError, match=r"model\.uri='someone/tiny@broken'.*width 17"):
        model_directory(f"{ID}@broken")
    assert not list(fetched_models_folder().glob("*/unet")), "it was refused before"


def test_a_commit_stays_when_its_branch_moves_on(
    hub: HubServer, published_files: dict[str, bytes]
) -> None:
    first = hub.add(ID, published_files)
    hub.repos[ID].revisions["v1"] = first
    assert pin_source(ID, "model.uri") == f"{ID}@{first}"
    scheduler = published_files["scheduler/scheduler_config.json"].replace(
        b"}", b', "moved": true}'
    )
    second = hub.repos[ID].commit(published_files | {"scheduler/scheduler_config.json": scheduler})
    assert pin_source(ID, "model.uri") == f"{ID}@{first}", "as this process has it"
    hub_files._find_commit.cache_clear()
    assert pin_source(ID, "model.uri") == f"{ID}@{second}"
    assert pin_source(f"{ID}@v1", "model.uri") == f"{ID}@{first}"
    old, new = model_directory(f"{ID}@{first}"), model_directory(f"{ID}@{second}")
    name = "scheduler/scheduler_config.json"
    assert (old / name).read_bytes() != (new / name).read_bytes() == scheduler
    with pytest.raises(ConfigError, match=r"no branch, tag or commit 'v2'; see http.*/tree/main"):
        model_directory(f"{ID}@v2")


def test_a_cut_off_body_is_gone_on_with(hub: HubServer, published_files: dict[str, bytes]) -> None:
    hub.add(ID, published_files)
    size_bytes = len(published_files[UNET])
    hub.cuts[UNET] = [size_bytes // 2, size_bytes // 4]
    directory = model_directory(ID)
    assert (directory / UNET).read_bytes() == published_files[UNET]
    header_bytes = 2**18
    assert hub.bytes_sent[UNET] <= size_bytes + header_bytes, "no byte comes twice"


def test_a_later_try_goes_on_where_one_has_ended(
    hub: HubServer, published_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, published_files)
    monkeypatch.setattr("dreambooth_ray.storage.transfer._PART_BYTES", 2**20)
    monkeypatch.setattr(hub_files, "_TRIES", 1)
    model_outline(ID)
    hub.ends[UNET] = 7 * 2**19
    with pytest.raises(StorageError, match=rf"{UNET} ends at|does not answer"):
        model_directory(ID)
    hub.ends.clear()
    before = hub.bytes_sent[UNET]
    directory = model_directory(ID)
    assert (directory / UNET).read_bytes() == published_files[UNET]
    assert hub.bytes_sent[UNET] - before == len(published_files[UNET]) - 3 * 2**20


def test_what_arrives_otherwise_than_the_hub_says_is_not_used(
    hub: HubServer, published_files: dict[str, bytes]
) -> None:
    commit = hub.add(ID, published_files)
    model = HubModel(ID, commit)
    hub_model = hub_files.open_hub_model(model)
    for name in (UNET, "unet/config.json"):
        path = Path(name.replace("/", "-"))
        path.write_bytes(published_files[name][:-1] + b"?")
        with pytest.raises(StorageError, match=f"{name} arrived otherwise"):
            hub_model.check_file_hash(name, path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("access", "token", "words"),
    [
        ("gated", "", "is gated: accept its terms at {page} and set HF_TOKEN"),
        ("gated", STRANGER, "is gated: accept its terms at {page} with the account of HF_TOKEN"),
        ("private", "", "no model someone/tiny at {page}; if it is private, set HF_TOKEN"),
        (
            "private",
            STRANGER,
            "no model someone/tiny at {page}; if it is private, HF_TOKEN must be",
        ),
        (
            "open",
            "hf_old",
            "does not know the token in HF_TOKEN; make one at {hub}/settings/tokens",
        ),
        ("none", "", "no model someone/tiny at {page}; if .*nor is there a directory /"),
    ],
)
def test_who_may_not_read_it_hears_in_one_line_what_to_do(
    hub: HubServer, published_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    access: str, token: str, words: str,
) -> None:  # fmt: skip
    if access != "none":
        hub.add(ID, published_files, access)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    words = words.format(page=f"{hub.endpoint}/{ID}", hub=hub.endpoint)
    with pytest.raises(ConfigError, match=rf"model\.uri='someone/tiny': .*{words}") as error:
        model_directory(ID)
    assert "\n" not in str(error.value)
    assert not token or token not in str(error.value)


def test_a_token_of_the_environment_or_of_the_librarys_file_is_shown_to_the_hub_alone(
    hub: HubServer,
    published_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    hub.add(ID, published_files, "gated")
    hub.add("someone/other", published_files, "private")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    model_directory(ID)
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    model_directory("someone/other")
    assert hub.tokens_elsewhere == []
    written = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert len(written) > 10
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_without_a_network_the_copies_here_are_used(
    hub: HubServer, published_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(ID, published_files)
    directory = model_directory(ID)
    hub.add("someone/else", published_files)
    snapshot_download("someone/else", allow_patterns=["*.json", "*.txt", "*/*.safetensors"])
    hub.close()
    huggingface_hub.close_session()
    hub_files._find_commit.cache_clear()
    assert model_directory(ID) == model_directory(f"{ID}@{commit}") == directory
    assert "snapshots" in str(model_directory("someone/else"))
    with pytest.raises(StorageError, match=r"does not answer.*nor is there a directory"):
        model_directory("someone/third")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(StorageError, match=r"HF_HUB_OFFLINE forbids"):
        model_directory("someone/third")


def test_what_another_program_has_downloaded_whole_is_not_fetched_again(
    hub: HubServer, published_files: dict[str, bytes]
) -> None:
    hub.add(ID, published_files)
    snapshot_download(ID)
    before = dict(hub.bytes_sent)
    assert model_directory(ID).parent.name == "snapshots"
    assert dict(hub.bytes_sent) == {**before, "model_index.json": before["model_index.json"] * 2}


def build_variant(folder: Path) -> Path:
    return build_published(SD15, folder, "fp16", "1MB")


def build_other_family(folder: Path) -> Path:
    return build_tiny("z-image", folder, max_shard_size="200KB")


@pytest.mark.parametrize("build", [build_variant, build_other_family])
def test_files_are_chosen_as_in_a_directory(
    hub: HubServer, tmp_path: Path, build: Callable[[Path], Path]
) -> None:
    folder = build(tmp_path / "m")
    hub.add(ID, read_folder(folder) | {"vae/diffusion_pytorch_model.bin": b"x"})
    directory = model_directory(ID)
    assert model_hash(directory) == model_hash(folder)
    assert len(list(directory.glob("*/*-of-*.safetensors"))) > 1


def test_pickles_alone_are_refused_by_name(
    hub: HubServer, published_files: dict[str, bytes]
) -> None:
    pickled = {n: c for n, c in published_files.items() if not n.startswith("unet/diff")}
    hub.add(ID, pickled | {"unet/diffusion_pytorch_model.bin": b"x"})
    with pytest.raises(ConfigError, match=r"unet/diffusion_pytorch_model\.bin alone, a pickle"):
        model_outline(ID)
    hub.add("someone/single", {"model.safetensors": b"x"})
    with pytest.raises(ConfigError, match=r"no model in diffusers format.*model\.safetensors"):
        model_outline("someone/single")
