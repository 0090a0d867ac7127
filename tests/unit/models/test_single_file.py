import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_ray.bundles import ldm
from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.clip_tokenizer_files import make_clip_tokenizer_files
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.families.stable_diffusion import FAMILY
from dreambooth_ray.models.part_configs import read_part_config
from dreambooth_ray.models.single_file import METADATA_KEY, read_single_file, write_directory
from dreambooth_ray.models.single_file_names import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    SingleFileEncoderNames,
)
from dreambooth_ray.models.weight_files import find_weights
from tests.published_models import SD15, SD15_INPAINTING, SD21, build_full_width

PARTS = ("unet", "vae", "text_encoder")


def assert_equal(one: Components, other: Components) -> None:
    for part in PARTS:
        ours, theirs = (getattr(parts, part).state_dict() for parts in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items()), part
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert one.schedule.config == other.schedule.config


@pytest.mark.parametrize("model", ["toy_model", "sd21"])
def test_what_was_exported_is_read_back_bit_by_bit(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(model)
    file = export_run(str(directory), "single-file", tmp_path / "one.safetensors")
    write_directory(read_single_file(file), tmp_path / "back")
    FAMILY.check(tmp_path / "back")
    assert_equal(load_components(tmp_path / "back"), load_components(directory))
    write_directory(read_single_file(file), tmp_path / "outline", whole=False)
    FAMILY.check(tmp_path / "outline")
    outline, whole = (
        find_weights(tmp_path / name / "unet", "unet").paths[0].stat()
        for name in ("outline", "back")
    )
    assert outline.st_size == whole.st_size
    assert outline.st_blocks < whole.st_blocks // 2


@cache
def list_published(name: str) -> dict[str, Tensor]:
    """Every tensor of a published file, on the meta device, by its name there."""
    parts = {part: build_full_width(name, part).state_dict() for part in PARTS}
    weights: dict[str, Tensor] = ldm.convert_unet(parts["unet"])
    weights |= ldm.convert_vae(parts["vae"])
    if name == SD21:  # the published files have the last layer too, and what nothing here reads
        place = SingleFileEncoderNames("open_clip", OPEN_CLIP_PREFIX)
        text = ldm.convert_text_encoder(parts["text_encoder"], place)
        last = "cond_stage_model.model.transformer.resblocks.22."
        text |= {n.replace(".22.", ".23."): w for n, w in text.items() if n.startswith(last)}
        text["cond_stage_model.model.text_projection"] = torch.empty(1024, 1024, device="meta")
        text["cond_stage_model.model.logit_scale"] = torch.empty((), device="meta")
    else:
        place = SingleFileEncoderNames("clip", CLIP_PREFIX)
        text = ldm.convert_text_encoder(parts["text_encoder"], place)
        ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        text[ids] = torch.empty(1, 77, dtype=torch.int64, device="meta")
    weights |= text
    weights |= {f"model_ema.{k}": torch.empty(2, device="meta") for k in ("decay", "num_updates")}
    return weights | {"betas": torch.empty(1000, device="meta")}


def write_published(path: Path, name: str, metadata: dict[str, str] | None = None) -> None:
    """A file of the published size and names."""
    write_hole(path, list_published(name), metadata)


def write_hole(
    path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """A file of these weights' names and shapes, of which the tensors are a hole."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key, weight in weights.items():
        dtype = "I64" if weight.dtype == torch.int64 else "F16"
        end = offset + weight.numel() * (8 if dtype == "I64" else 2)
        shape = list(weight.shape)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)


@pytest.mark.parametrize("name", [SD15, SD15_INPAINTING, SD21])
def test_files_of_the_published_sizes_are_told_by_their_weights(name: str, tmp_path: Path) -> None:
    """Every weight of the published networks has its place, under the name they load it by."""
    file = tmp_path / "model.safetensors"
    write_published(file, name)
    write_directory(read_single_file(file, "v_prediction" if name == SD21 else None),
                    tmp_path / "m", whole=False)  # fmt: skip
    FAMILY.check(tmp_path / "m")
    for part in PARTS:
        expected = {
            k.removeprefix("text_model."): list(v.shape)
            for k, v in build_full_width(name, part).state_dict().items()
        }
        shapes = find_weights(tmp_path / "m" / part, part).read_shapes()
        assert {k.removeprefix("text_model."): v for k, v in shapes.items()} == expected
    assert read_part_config(tmp_path / "m", "unet")["in_channels"] == (
        9 if name == SD15_INPAINTING else 4
    )


def test_what_a_2_x_predicts_is_said_by_its_header_a_yaml_or_the_caller(tmp_path: Path) -> None:
    file = tmp_path / "v2.safetensors"

    def find_prediction(given: str | None = None) -> str:
        small_files = read_single_file(file, given).small_files
        config = json.loads(small_files["scheduler/scheduler_config.json"])
        return str(config["prediction_type"])

    write_published(file, SD21)
    with pytest.raises(ConfigError, match=r"does not say what it predicts; set model\.prediction_"):
        read_single_file(file)
    assert find_prediction("epsilon") == "epsilon"
    file.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert find_prediction() == "v_prediction"
    file.with_suffix(".yaml").unlink()
    write_published(file, SD21, {"modelspec.prediction_type": "epsilon"})
    assert find_prediction() == "epsilon"


def test_other_files_are_refused_by_what_they_are(tmp_path: Path, toy_model: Path) -> None:
    def refusal(weights: dict[str, Tensor], name: str = "x.safetensors") -> str:
        save_file({key: weight.clone() for key, weight in weights.items()}, tmp_path / name)
        with pytest.raises(ConfigError) as error:
            read_single_file(tmp_path / name)
        assert "\n" not in str(error.value)
        return str(error.value)

    one = torch.zeros(2, 2)
    clip = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": one}
    unet = {"model.diffusion_model.out.2.weight": one}
    vae = {"first_stage_model.quant_conv.weight": one}
    assert "a pickle, which can run code" in refusal(unet, "x.ckpt")
    assert "has no text encoder that is known" in refusal(unet | vae)  # as SDXL's refiner
    assert "FLUX" in refusal({"model.diffusion_model.double_blocks.0.x": one})
    assert "Stable Diffusion 3" in refusal({"model.diffusion_model.joint_blocks.0.x": one})
    assert "a LoRA" in refusal({"lora_unet_down.lora_up.weight": one})
    assert "has no UNet, but 'x'" in refusal({"x": one})
    assert "has no VAE" in refusal(unet | clip)
    assert "of no size that is known (stable-diffusion-1.5" in refusal(unet | clip | vae)
    fp8 = {"model.diffusion_model.out.2.weight": one.to(torch.float8_e4m3fn)}
    assert "F8_E4M3, which is not trained" in refusal(fp8 | clip | vae)


def test_half_precision_and_other_programs_files_load(tmp_path: Path, toy_model: Path) -> None:
    """Averages beside the weights and an older level of names, as published files have them."""
    file = export_run(str(toy_model), "single-file", tmp_path / "a.safetensors", half=True)
    read = read_single_file(file)
    metadata = {METADATA_KEY: json.dumps(dict(read.small_files))}
    weights = {k.replace(".text_model.", "."): v for k, v in load_file(file).items()}
    weights["model_ema.decay"] = torch.zeros(1)
    weights["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(weights, tmp_path / "b.safetensors", metadata)
    write_directory(read_single_file(tmp_path / "b.safetensors"), tmp_path / "m")
    parts, original = load_components(tmp_path / "m"), load_components(toy_model)
    for name, weight in original.unet.state_dict().items():
        assert torch.equal(parts.unet.state_dict()[name], weight.half().float()), name


@pytest.mark.skipif("MODEL_CONFIGS_DIR" not in os.environ, reason="MODEL_CONFIGS_DIR is not set")
def test_the_vocabulary_is_the_published_one() -> None:
    folder = Path(os.environ["MODEL_CONFIGS_DIR"]) / SD15 / "tokenizer"
    vocabulary = make_clip_tokenizer_files()
    assert vocabulary["tokenizer/merges.txt"] == (folder / "merges.txt").read_text("utf-8")
    words = json.loads(vocabulary["tokenizer/vocab.json"])
    assert words == json.loads((folder / "vocab.json").read_text("utf-8"))
    assert len(words) == 49408
