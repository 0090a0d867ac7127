"""Every format is read back by the library that reads it, and generates the same image."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_ray.bundles import export_formats, prepared_export
from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.models.tensor_files import TensorSource
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
    # The key by which readers know that the others are there.
    assert about["modelspec.sai_model_spec"] == "1.0.0"
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


ALL_LAYERS = (
    "train.lora.target_modules=[to_q,to_k,to_v,to_out.0,proj_in,proj_out,ff.net.0.proj,ff.net.2,"
    "conv1,conv2,time_emb_proj,conv_shortcut,downsamplers.0.conv,upsamplers.0.conv]"
)
TEXT_LAYERS = "train.lora.text_target_modules=[q_proj,k_proj,v_proj,out_proj,fc1,fc2]"


@pytest.fixture(scope="module", params=["sd15", pytest.param("sd21", marks=pytest.mark.fault)])
def published(request: pytest.FixtureRequest) -> Path:
    return cast(Path, request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def published_bundle(tmp_path_factory: pytest.TempPathFactory, published: Path) -> Path:
    """Adapters in every kind of layer of a published configuration."""
    folder = tmp_path_factory.mktemp("published") / "b"
    return make_bundle(folder, published, ALL_LAYERS, TEXT_LAYERS, "train.lora.alpha=3")


@pytest.mark.parametrize("kind", ["lora", "kohya"])
def test_every_layer_of_a_published_model_is_read_back(
    published: Path, published_bundle: Path, tmp_path: Path, kind: str
) -> None:
    out = export_run(str(published_bundle), kind, tmp_path / "subject.safetensors")
    pipeline = load_pipeline(published)
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    expected, base = load_pipeline(published_bundle), load_pipeline(published)
    num_changed = 0
    for part in ("unet", "text_encoder"):
        read, plain = getattr(pipeline, part).state_dict(), getattr(base, part).state_dict()
        for name, weight in getattr(expected, part).state_dict().items():
            assert torch.allclose(read[name], weight, atol=1e-5), name
            num_changed += int(not torch.equal(weight, plain[name]))
    with safe_open(out, "pt") as file:
        num_layers = sum("lora_A" in n or "lora_down" in n for n in file.keys())  # noqa: SIM118
    assert num_changed == num_layers > 100
    predicts = "epsilon" if published.name.endswith("1.5") else "v"
    assert metadata(out)["modelspec.prediction_type"] == predicts


def test_a_published_model_becomes_a_single_file_and_a_directory(
    published: Path, tmp_path: Path
) -> None:
    out = export_run(str(published), "single-file", tmp_path / "model.safetensors")
    read, own = single_file(out, published), load_pipeline(published)
    folder = export_run(str(published), "diffusers", tmp_path / "folder")
    saved = StableDiffusionPipeline.from_pretrained(folder)
    for part in ("unet", "vae", "text_encoder"):
        weights = getattr(own, part).state_dict()
        for other in (read, saved):
            other_weights = getattr(other, part).state_dict()
            assert weights.keys() == other_weights.keys()
            assert all(torch.equal(weights[k], other_weights[k]) for k in weights), part
    assert np.abs(generate_image(saved) - generate_image(own)).max() <= 1
    assert saved.tokenizer("a sks robot").input_ids == own.tokenizer("a sks robot").input_ids


def test_what_readers_can_not_have_is_refused_by_name(
    tmp_path: Path, tiny_model: Path, bundle: Path
) -> None:
    odd = make_bundle(tmp_path / "b", tiny_model, "train.lora.target_modules=[to_q,conv_in]")
    with pytest.raises(ConfigError, match="no adapter of conv_in"):
        export_run(str(odd), "kohya", tmp_path / "x.safetensors")
    worded = shutil.copytree(bundle, tmp_path / "worded")
    tokens.save_words({"text_encoder": {"<sks>": torch.zeros(32)}}, worded / "adapter")
    for kind in ("lora", "kohya", "single-file"):
        with pytest.raises(ConfigError, match=rf"--format={kind}: .*learned word <sks>"):
            export_run(str(worded), kind, tmp_path / "x.safetensors")


def test_a_model_that_can_not_be_read_is_not_blamed_on_the_output(
    bundle: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "adapter" / "unet" / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"damaged/adapter/unet can't be loaded") as refused:
        export_run(str(damaged), "lora", tmp_path / "x.safetensors")
    assert "--out" not in str(refused.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--out=.*can't be written"):
        export_run(str(bundle), "lora", tmp_path / "file" / "x.safetensors")


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


@pytest.mark.parametrize("kind", ["lora", "kohya"])
def test_what_float16_has_no_number_for_is_refused(bundle: Path, tmp_path: Path, kind: str) -> None:
    for factor, said in ((1e-9, r"--half: .*what \S+ learnt by"), (1e9, r"--half: .*beyond 65504")):
        folder = shutil.copytree(bundle, tmp_path / f"{kind}-{factor}")
        path = folder / "adapter" / "unet" / "adapter_model.safetensors"
        weights = {
            name: weight * factor if "lora_B" in name else weight
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=said):
            export_run(str(folder), kind, tmp_path / "x.safetensors", half=True)
        assert not list(tmp_path.glob("x*"))
        export_run(str(folder), kind, tmp_path / f"{factor}.safetensors")


@pytest.mark.parametrize("kind", ["lora", "kohya", "single-file", "diffusers"])
def test_nothing_is_announced_that_its_reader_reads_otherwise(
    bundle: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer left out of the file, or a weight that comes out otherwise."""
    out = tmp_path / ("folder" if kind == "diffusers" else "x.safetensors")
    if kind == "diffusers":
        save_pretrained = StableDiffusionPipeline.save_pretrained

        def save_spoilt(self: StableDiffusionPipeline, path: Path, **settings: Any) -> None:
            save_pretrained(self, path, **settings)
            file = next((path / "unet").glob("*.safetensors"))
            weights = load_file(file)
            weights["conv_in.weight"] += 1
            save_file(weights, file, metadata={"format": "pt"})

        monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", save_spoilt)
    else:
        save = prepared_export.write_tensor_sources

        def save_partly(weights: dict[str, TensorSource], *rest: Any) -> None:
            layer = next(n for n in weights if "to_q" in n).partition(".lora")[0]
            save({k: v for k, v in weights.items() if not k.startswith(layer)}, *rest)

        writer = export_formats if kind == "single-file" else prepared_export
        monkeypatch.setattr(writer, "write_tensor_sources", save_partly)
    with pytest.raises(ConfigError, match=rf"--format={kind}: diffusers (reads|can't read)"):
        export_run(str(bundle), kind, out)
    assert list(tmp_path.iterdir()) == []


def test_dora_is_read_back_with_its_magnitudes(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", tiny_model, "train.lora.dora=true", "train.lora.alpha=3")
    out = export_run(str(folder), "lora", tmp_path / "x.safetensors")
    pipeline = load_pipeline(tiny_model)
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    expected = generate_image(load_pipeline(folder))
    assert np.abs(generate_image(pipeline) - expected).max() <= 1
    assert np.abs(generate_image(load_pipeline(tiny_model)) - expected).mean() > 0.5


def test_a_model_without_an_index_becomes_a_single_file(sd15: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd15, tmp_path / "m")
    (folder / "model_index.json").unlink()
    shutil.rmtree(folder / "feature_extractor")
    assert export_run(str(folder), "single-file", tmp_path / "x.safetensors").is_file()
