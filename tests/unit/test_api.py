"""The verbs as functions, each on the smallest model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dreambooth_ray
from dreambooth_ray.config.load import load_config
from dreambooth_ray.errors import ConfigError

LAZY = """
import sys
import dreambooth_ray
assert dreambooth_ray.__version__
loaded = {"torch", "ray", "pydantic"} & sys.modules.keys()
assert not loaded, loaded
assert {"train", "generate", "evaluate", "export", "Engine", "Config"} <= set(dir(dreambooth_ray))
from dreambooth_ray import Config, evaluate, export, generate, train
assert all(map(callable, (Config, evaluate, export, generate, train)))
assert not {"torch", "ray"} & sys.modules.keys()
from dreambooth_ray import bundles, evaluation, generation
assert callable(dreambooth_ray.export) and callable(dreambooth_ray.generate)
"""


def test_the_package_imports_what_is_used_alone() -> None:
    subprocess.run([sys.executable, "-c", LAZY], timeout=120, check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dreambooth_ray.trian  # type: ignore[attr-defined]


def test_the_package_runs_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dreambooth_ray", "--help"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "generate" in result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, photos: Path) -> str:
    config = load_config(
        "toy-robot.yaml",
        [
            f"model.uri={tiny_model}",
            f"subject.photos={photos}",
            f"storage.uri={tmp_path_factory.mktemp('storage')}",
            "prior.count=2",
            "prior.num_inference_steps=1",
            "sample.every=0",
            "cluster.workers=1",
        ],
    )
    return dreambooth_ray.train(config, "train.steps=2", "run_id=mine", quiet=True)


def test_train_makes_a_bundle(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.endswith("/runs/mine")
    assert (Path(run) / "bundle" / "manifest.json").is_file()
    assert capsys.readouterr().out == ""


def test_generate_returns_images(run: str) -> None:
    images = dreambooth_ray.generate(
        run, "a sks robot", num_images=2, num_inference_steps=1, quiet=True
    )
    assert [image.size for image in images] == [(64, 64), (64, 64)]
    again = dreambooth_ray.generate(run, seed=1, num_inference_steps=1, quiet=True)
    difference = np.asarray(again[0]).astype(int) - np.asarray(images[1]).astype(int)
    assert np.abs(difference).max() <= 1


def test_generate_names_a_setting_that_is_none(run: str) -> None:
    with pytest.raises(ConfigError, match="guidance_scal"):
        dreambooth_ray.generate(run, guidance_scal=2.0)


def test_evaluate_returns_totals(run: str, tmp_path: Path) -> None:
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text(
        "name: small\n"
        "images_per_prompt: 1\n"
        "class_images: 2\n"
        "num_inference_steps: 1\n"
        "encoders: {dino: 'toyworld:identity', clip_i: pixels, clip_t: 'toyworld:attributes'}\n"
        "prompts: {object: ['a {identifier} {class_noun}', 'a red {identifier} {class_noun}']}\n"
    )
    evaluation = dreambooth_ray.evaluate(run, str(protocol), quiet=True)
    assert evaluation.totals
    assert all(isinstance(value, float) for value in evaluation.totals.values())
    assert Path(evaluation.report).is_file()
    assert evaluation.uri.startswith(f"{run}/evaluations/")


def test_export_writes_a_file(run: str, tmp_path: Path) -> None:
    path = dreambooth_ray.export(run, tmp_path / "model.safetensors", "single-file", half=True)
    assert path.is_file()


def test_engine_is_the_engine(run: str) -> None:
    from dreambooth_ray.sampling.request import Request

    engine = dreambooth_ray.Engine(Path(run) / "bundle")
    (output,) = engine.sample([Request("a sks robot", 0, num_inference_steps=1)])
    assert isinstance(output.image, Image.Image)
