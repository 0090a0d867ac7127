"""Single files of Stable Diffusion XL, of the published size and of a tiny one."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from dreambooth_ray.bundles import ldm
from dreambooth_ray.models.single_file import (
    METADATA_KEY,
    read_single_file,
    read_small_files,
    write_directory,
)
from dreambooth_ray.models.single_file_names import (
    XL_CLIP_PREFIX,
    XL_OPEN_CLIP_PREFIX,
    SingleFileEncoderNames,
)
from dreambooth_ray.models.weight_files import find_weights
from tests.families.tiny_models import build_tiny
from tests.published_models import CONFIGS, SDXL, build_full_width
from tests.unit.models.test_single_file import write_hole


def convert(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Weights by their names in a single file, the second projection as open_clip has it."""
    weights = ldm.convert_unet(parts["unet"]) | ldm.convert_vae(parts["vae"])
    for part, place in {
        "text_encoder": SingleFileEncoderNames("clip", XL_CLIP_PREFIX),
        "text_encoder_2": SingleFileEncoderNames("open_clip", XL_OPEN_CLIP_PREFIX),
    }.items():
        weights |= ldm.convert_text_encoder(parts[part], place)
    return weights


def test_a_file_of_the_published_size_is_told_by_its_weights(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / SDXL / "text_encoder_2" / "config.json").read_text())
    with torch.device("meta"):
        second = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    parts = {
        part: build_full_width(SDXL, part).state_dict() for part in ("unet", "vae", "text_encoder")
    } | {"text_encoder_2": second.state_dict()}
    file = tmp_path / "xl.safetensors"
    write_hole(file, convert(parts))
    model = read_single_file(file)
    for part, weights in parts.items():
        stored = {k.removeprefix("text_model."): v.shape for k, v in model.parts[part].items()}
        expected = {k.removeprefix("text_model."): tuple(v.shape) for k, v in weights.items()}
        assert stored == expected, part
    assert {"tokenizer_2/vocab.json", "scheduler/scheduler_config.json"} <= model.small_files.keys()
    write_hole(file, convert(parts) | {"v_pred": torch.empty(0, device="meta")})
    scheduler = read_single_file(file).small_files["scheduler/scheduler_config.json"]
    assert json.loads(scheduler)["prediction_type"] == "v_prediction"


def test_a_tiny_one_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    directory = build_tiny("sdxl", tmp_path / "tiny")
    parts = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (path,) = find_weights(directory / part, part).paths
        parts[part] = {
            name.removeprefix("text_model."): weight
            for name, weight in load_file(path).items()
            if not name.endswith("position_ids")
        }
    metadata = {METADATA_KEY: json.dumps(read_small_files(directory))}
    weights = {name: weight.contiguous() for name, weight in convert(parts).items()}
    save_file(weights, tmp_path / "xl.safetensors", metadata)
    write_directory(read_single_file(tmp_path / "xl.safetensors"), tmp_path / "back")
    for part, expected in parts.items():
        (path,) = find_weights(tmp_path / "back" / part, part).paths
        read = {k.removeprefix("text_model."): v for k, v in load_file(path).items()}
        assert read.keys() == expected.keys(), part
        assert all(torch.equal(weight, read[name]) for name, weight in expected.items()), part
    for name, text in read_small_files(directory).items():
        assert (tmp_path / "back" / name).read_text() == text
