"""Every format is read back by the library that reads it, and generates the same image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_ray.bundles.formats import export_run
from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.models.components import load_pipeline
from tests.unit.models.test_lora_bundle import make_bundle


def generate_image(pipeline: StableDiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(4)
    output = pipeline("a sks robot", num_inference_steps=2, generator=noise, height=64, width=64)
    return np.asarray(output.images[0]).astype(int)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def single_file(path: Path, config: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_single_file(
        str(path), config=str(config), safety_checker=None, local_files_only=True
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return make_bundle(tmp_path_factory.mktemp("adapted") / "b", tiny_model)


@pytest.fixture(scope="module")
def reference_image(bundle: Path) -> np.ndarray:
    return generate_image(load_pipeline(bundle))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Like 2.x: open_clip's activation, linear projections around attention."""
    folder = tmp_path_factory.mktemp("second") / "model"
    pipeline = load_pipeline(tiny_model)
    torch.manual_seed(1)
    text = {**pipeline.text_encoder.config.to_dict(), "hidden_act": "gelu"}
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(**text))
    config = {**pipeline.unet.config, "use_linear_projection": True}
    pipeline.unet = UNet2DConditionModel.from_config(config)
    pipeline.save_pretrained(folder)
    return folder


def test_adapters_change_the_image(
    tiny_model: Path, bundle: Path, reference_image: np.ndarray
) -> None:
    assert np.abs(generate_image(load_pipeline(tiny_model)) - reference_image).mean() > 2


def test_a_diffusers_directory_has_the_adapters_in_its_weights(
    bundle: Path, reference_image: np.ndarray, tmp_path: Path
) -> None:
    out = export_run(str(bundle), "diffusers", tmp_path / "model")
    plain = StableDiffusionPipeline.from_pretrained(out)
    assert np.abs(generate_image(plain) - reference_image).max() <= 1
    assert json.loads((out / "manifest.json").read_text())["about"]["kind"] == "bundle"
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("kind", ["lora", "kohya"])
def test_diffusers_reads_adapters_of_both_namings(
    tiny_model: Path, bundle: Path, reference_image: np.ndarray, tmp_path: Path, kind: str
) -> None:
    out = export_run(str(bundle), kind, tmp_path / "subject.safetensors")
    pipeline = load_pipeline(tiny_model)
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    assert np.abs(generate_image(pipeline) - reference_image).max() <= 1
    half = export_run(str(bundle), kind, tmp_path / "half.safetensors", half=True)
    assert half.stat().st_size < 0.8 * out.stat().st_size
    about = metadata(out)
    assert about["modelspec.architecture"] == "stable-diffusion-v1/lora"
    if kind == "kohya":
        assert (about["ss_network_dim"], about["ss_network_module"]) == ("8", "networks.lora")
        with safe_open(out, "pt") as file:
            names = set(file.keys())
            assert float(file.get_tensor(next(n for n in names if n.endswith(".alpha")))) == 8.0
        layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
        assert {f"{layer}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha")} <= names
        assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha" in names


@pytest.mark.parametrize("model", ["tiny_model", "other_model", "second"])
def test_diffusers_reads_a_single_file(
    request: pytest.FixtureRequest, tmp_path: Path, model: str
) -> None:
    directory: Path = request.getfixturevalue(model)
    out = export_run(str(directory), "single-file", tmp_path / "model.safetensors")
    read, own = single_file(out, directory), load_pipeline(directory)
    for part in ("unet", "vae", "text_encoder"):
        own_weights, read_weights = (
            getattr(own, part).state_dict(),
            getattr(read, part).state_dict(),
        )
        assert own_weights.keys() == read_weights.keys()
        assert all(torch.equal(own_weights[k], read_weights[k]) for k in own_weights), part
    # The weights are the same; where they lie otherwise in memory, some processors round otherwise.
    assert np.abs(generate_image(read) - generate_image(own)).max() <= 1
    version = "2" if model == "second" else "1"
    assert metadata(out)["modelspec.architecture"] == f"stable-diffusion-v{version}"


def test_a_single_file_of_an_adapter_bundle_has_it_fused(
    tiny_model: Path, bundle: Path, reference_image: np.ndarray, tmp_path: Path
) -> None:
    out = export_run(str(bundle), "single-file", tmp_path / "model.safetensors")
    assert np.abs(generate_image(single_file(out, tiny_model)) - reference_image).max() <= 1


def test_what_can_not_be_written_is_refused(tiny_model: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no adapters.*train\.method=lora"):
        export_run(str(tiny_model), "lora", tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="must end in"):
        export_run(str(bundle), "lora", tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="--format='onnx' is none of"):
        export_run(str(bundle), "onnx", tmp_path / "x")
    with pytest.raises(StorageError, match="there already"):
        export_run(str(bundle), "lora", tmp_path)
