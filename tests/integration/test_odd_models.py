"""Odd directories that load: trained, resumed, exported to every format, and served."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import publish_run
from serve.replica import Replica
from tests.integration.site import Site
from tests.integration.test_matrix import SMALL, Matrix
from tests.odd_models import ODD_MODELS

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1200)]
FORMATS = "diffusers", "lora", "kohya", "single-file"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("odd-models")
    built = {name: build(folder / name) for name, build in ODD_MODELS.items()}
    return {name: model_directory(str(directory)) for name, directory in built.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photos: Path, models: dict[str, Path]) -> Matrix:
    """Adapters of every model: four steps in two halves, the second one resumed."""
    folder = tmp_path_factory.mktemp("odd-runs")
    recipe = {
        **SMALL,
        "prior": {"count": 0},
        "subject": {"photos": str(photos), "class_noun": "robot"},
    }
    settings = ["train.method=lora", "train.text_encoder=true"]
    matrix = Matrix(folder, recipe, Store(str(folder / "priors")))
    plans = {name: [*settings, f"model.uri={path}"] for name, path in models.items()}
    matrix.run_settings(plans, world_size=1)
    return matrix


@pytest.fixture(scope="module")
def client(runs: Matrix, models: dict[str, Path]) -> Iterator[openai.OpenAI]:
    for name in ODD_MODELS:
        publish_run(Store(f"{runs.folder}/runs/{name}"))
    config = ServeConfig.model_validate(
        {"models": {n: str(path) for n, path in models.items()},
         "storage": {"uri": str(runs.folder)}, "safety": {"prompts": False},
         "replicas": {"batch": 1}}
    )  # fmt: skip
    replica = Replica(config)
    with Site(config, replica) as site:
        yield openai.OpenAI(base_url=f"{site.address}/v1", api_key="none", max_retries=0)
    replica.__del__()


@pytest.mark.parametrize("name", ODD_MODELS)
def test_it_trains_and_resumes(runs: Matrix, name: str) -> None:
    result = runs.read_result(name)
    assert [record["step"] for record in result["curve"]] == [1, 2, 3, 4]
    for before, after in zip(result["curve"], result["resumed_curve"], strict=True):
        assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ODD_MODELS)
def test_it_is_exported(runs: Matrix, tmp_path: Path, name: str, kind: str) -> None:
    """Each export is read back by diffusers, and compared, before it is announced."""
    runs.read_result(name)
    out = tmp_path / ("exported" if kind == "diffusers" else "exported.safetensors")
    assert export_run(f"{runs.folder}/runs/{name}/{paths.BUNDLE}", kind, out) == out
    assert out.exists()


@pytest.mark.parametrize("name", ODD_MODELS)
def test_it_is_served(runs: Matrix, client: openai.OpenAI, name: str) -> None:
    runs.read_result(name)
    settings: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}
    images = [
        client.images.generate(
            model=name, prompt="a photo of sks robot", size=size, extra_body=settings
        )
        for size in ("64x64", "64x128")
    ]  # type: ignore[call-overload]
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).size for answer in images
    ]
    assert sizes == [(64, 64), (64, 128)]
