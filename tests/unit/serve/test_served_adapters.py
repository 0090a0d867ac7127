"""Adapters in requests: of other subjects and of files, in one batch, with receipts that repeat."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from starlette.testclient import TestClient

from benchmarks.served_subjects import make_subjects
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import CapacityError, ConfigError
from dreambooth_ray.sampling.denoiser import Denoiser, ForwardRow
from dreambooth_ray.sampling.engine import Engine
from serve.adapter_cache import AdapterCache
from serve.adapter_folder_setting import check_adapter_folder_setting
from serve.allowed_adapters import AdapterFolder
from serve.deployment import build_app_state
from serve.gateway import create_app
from serve.replica import Replica
from tests.unit.adapters.published_keys import make_tensors, write_file
from tests.unit.serve.conftest import Handle

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
QUICK = {"prompt": "a red robot", "num_inference_steps": 3, "seed": 5}


def write_style(path: Path, toy_model: Path, seed: int, kind: str = "lora") -> Path:
    table = LayerTable.of_directory(toy_model)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in table.layers["unet"].items():
        if name.endswith("attn2.to_k"):
            layer = f"lora_unet_{name.replace('.', '_')}"
            roles = {
                "lora": {"lora_down.weight": (2, shape[1]), "lora_up.weight": (shape[0], 2)},
                "loha": {"hada_w1_a": (shape[0], 2), "hada_w1_b": (2, shape[1]),
                         "hada_w2_a": (shape[0], 2), "hada_w2_b": (2, shape[1])},
            }[kind]  # fmt: skip
            shapes |= {f"{layer}.{role}": size for role, size in roles.items()}
    return write_file(path, make_tensors(shapes, seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "adapters"
    (folder / "flat").mkdir(parents=True)
    write_style(folder / "style.safetensors", toy_model, 1)
    write_style(folder / "flat" / "pose.safetensors", toy_model, 2, "loha")
    write_style(folder.parent / "secret.safetensors", toy_model, 3)
    (folder / "link.safetensors").symlink_to(folder.parent / "secret.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 100)
    write_file(folder / "foreign.safetensors", {"double_blocks.0.x.alpha": torch.tensor(1.0)})
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> ServeConfig:
    storage = str(tmp_path_factory.mktemp("serve-adapters"))
    make_subjects(storage, "toyworld")
    return ServeConfig.model_validate(
        {
            "storage": {"uri": storage},
            "replicas": {"batch": 4},
            "limits": {"adapters": 3},
            "adapters": {"folder": str(folder)},
            "safety": {"prompts": False},
        }
    )


@pytest.fixture(scope="module")
def replica(config: ServeConfig) -> Iterator[Replica]:
    replica = Replica(config)
    yield replica
    replica.__del__()


@pytest.fixture
def client(config: ServeConfig, replica: Replica) -> Iterator[TestClient]:
    app = create_app(build_app_state(config, {"Replica": Handle(replica)}))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def draw(client: TestClient, **changes: Any) -> dict[str, Any]:
    answer = client.post(GENERATE, json=QUICK | changes)
    assert answer.status_code == 200, answer.text
    image: dict[str, Any] = answer.json()["data"][0]
    return image


def pixels(image: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).convert("RGB")


def differ(one: dict[str, Any], other: dict[str, Any]) -> int:
    extrema = ImageChops.difference(pixels(one), pixels(other)).getextrema()
    return max(high for _, high in extrema)  # type: ignore[misc]


def test_a_receipt_with_adapters_repeats_its_image(client: TestClient) -> None:
    adapters = [
        {"file": "style.safetensors", "weight": 0.8},
        {"model": "subject-1", "weight": -0.5},
    ]
    plain, image = draw(client), draw(client, adapters=adapters)
    assert differ(plain, image) > 1
    assert plain["receipt"]["adapters"] == []
    first, second = image["receipt"]["adapters"]
    assert (first["file"], first["weight"]) == ("style.safetensors", 0.8)
    assert second["model"].startswith("subject-1@")
    assert (len(first["sha256"]), len(second["sha256"])) == (64, 64)
    again = draw(client, adapters=image["receipt"]["adapters"])
    assert again["receipt"] == image["receipt"]
    assert differ(again, image) == 0
    reordered = draw(client, adapters=adapters[::-1])
    assert differ(reordered, image) <= 1


def test_a_subject_and_adapters_beside_it_are_their_sum(client: TestClient) -> None:
    both = [{"model": "subject-0"}, {"file": "style.safetensors"}]
    image = draw(client, model="subject-0", adapters=[{"file": "style.safetensors"}])
    assert differ(image, draw(client, adapters=both)) <= 1
    assert image["receipt"]["model"].startswith("subject-0@")
    assert image["receipt"]["base_sha256"] != image["receipt"]["weights_sha256"]


def test_requests_with_other_adapters_share_a_forward(
    client: TestClient, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[set[AdapterMix]] = []
    original = Denoiser.__call__
    requests = [
        {"adapters": [{"file": "style.safetensors", "weight": 0.5}]},
        {"adapters": [{"model": "subject-1"}, {"file": "style.safetensors"}]},
        {"model": "subject-2"},
        {"adapters": [{"file": "flat/pose.safetensors"}]},
    ]
    alone = [draw(client, seed=k, num_inference_steps=8, **r) for k, r in enumerate(requests)]

    def record(self: Denoiser, rows: list[ForwardRow]) -> Any:
        forwards.append({row.adapters for row in rows})
        return original(self, rows)

    monkeypatch.setattr(Denoiser, "__call__", record)

    async def draw_all() -> list[dict[str, Any]]:
        work = [
            asyncio.to_thread(draw, client, seed=k, num_inference_steps=8, **r)
            for k, r in enumerate(requests)
        ]
        return await asyncio.gather(*work)

    together = asyncio.run(draw_all())
    assert max(map(len, forwards)) >= 2
    assert all(differ(a, b) <= 1 for a, b in zip(alone, together, strict=True))


def test_a_form_has_adapters_as_text(client: TestClient) -> None:
    image = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(image, "PNG")
    adapters = [{"file": "style.safetensors", "weight": 0.5}]
    answer = client.post(
        EDIT,
        data={"prompt": "x", "num_inference_steps": "2", "adapters": json.dumps(adapters)},
        files={"image": image.getvalue()},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["receipt"]["adapters"][0]["weight"] == 0.5
    answer = client.post(
        EDIT, data={"prompt": "x", "adapters": "[{"}, files={"image": image.getvalue()}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "adapters")


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ([{"file": "absent.safetensors"}], "there is no file='absent.safetensors'"),
        ([{"file": "link.safetensors"}], "there is no file='link.safetensors'"),
        ([{"file": "../secret.safetensors"}], "string should match"),
        ([{"file": "/etc/passwd"}], "string should match"),
        ([{"file": "flat/../../secret.safetensors"}], "string should match"),
        ([{"file": "style.safetensors\n"}], "string should match"),
        ([{"file": "style.pt"}], "string should match"),
        ([{"file": "broken.safetensors"}], "is no whole safetensors file"),
        ([{"file": "foreign.safetensors"}], "of FLUX.1"),
        ([{"file": "style.safetensors", "weight": 11}], "less than or equal to 10"),
        ([{"file": "style.safetensors", "weight": "NaN"}], "finite number"),
        ([{"file": "style.safetensors", "model": "subject-1"}], "give either model or file"),
        ([{"weight": 1}], "give either model or file"),
        ([{"file": "style.safetensors", "scale": 1}], "'adapters.0.scale' is not supported"),
        ([{"file": "style.safetensors"}] * 2, "twice"),
        ([{"file": "style.safetensors"}] * 4, "adapters is 4 and at most 3"),
        ([{"file": "style.safetensors"}] * 17, "at most 16"),
        ([{"model": "toyworld"}], "is no adapter but a whole model"),
        ([{"file": "style.safetensors", "sha256": "0" * 64}], "has other weights now"),
    ],
)
def test_adapters_that_can_not_be_taken_are_refused_by_name(
    client: TestClient, folder: Path, adapters: list[dict[str, Any]], message: str
) -> None:
    answer = client.post(GENERATE, json=QUICK | {"adapters": adapters})
    assert answer.status_code == 400, answer.text
    text = answer.json()["error"]["message"]
    assert message in text
    assert str(folder) not in text


def test_a_subject_that_is_not_there_is_not_found(client: TestClient) -> None:
    answer = client.post(GENERATE, json=QUICK | {"adapters": [{"model": "nobody"}]})
    assert answer.status_code == 404


def test_a_folder_that_is_not_there_is_refused_before_the_start(tmp_path: Path) -> None:
    settings = {"adapters": {"folder": str(tmp_path / "absent")}}
    with pytest.raises(ConfigError, match=r"adapters\.folder=.*absent' is no folder here"):
        check_adapter_folder_setting(ServeConfig.model_validate(settings))
    check_adapter_folder_setting(
        ServeConfig.model_validate({"adapters": {"folder": "s3://bucket/adapters"}})
    )
    check_adapter_folder_setting(ServeConfig())


def test_without_a_folder_no_file_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"endpoint has no adapters\.folder"):
        AdapterFolder(None, 1.0).locate("style.safetensors")


def test_a_folder_at_a_url_is_fetched(folder: Path) -> None:
    remote = AdapterFolder(f"file://{folder}", 60.0)
    path, digest = remote.locate("style.safetensors")
    assert path.read_bytes() == (folder / "style.safetensors").read_bytes()
    assert remote.locate("style.safetensors") == (path, digest)
    with pytest.raises(ConfigError, match="there is no file='absent"):
        remote.locate("absent.safetensors")


def test_loaded_adapters_are_bounded_in_bytes(toy_model: Path, tmp_path: Path) -> None:
    engine = Engine(toy_model)
    paths = [write_style(tmp_path / f"{k}.safetensors", toy_model, k) for k in range(3)]
    size = paths[0].stat().st_size
    cache = AdapterCache(64, 2 * size)
    for path in paths[:2]:
        cache.add("toyworld", engine, path.name, path, "0")
    held = cache.acquire("toyworld", "0.safetensors")
    assert held is not None
    cache.add("toyworld", engine, paths[2].name, paths[2], "0")
    assert cache.names("toyworld") == ["0.safetensors", "2.safetensors"]
    assert engine.loaded_adapter_names == {"0.safetensors", "2.safetensors"}
    assert cache.acquire("toyworld", "2.safetensors")
    with pytest.raises(CapacityError, match="2 adapters are in use"):
        cache.add("toyworld", engine, paths[1].name, paths[1], "0")
    with pytest.raises(ConfigError, match=r"replicas\.adapter_bytes is 100; raise it"):
        AdapterCache(64, 100).add("toyworld", engine, "x", paths[1], "0")
