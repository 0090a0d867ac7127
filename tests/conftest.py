"""What several tests stand on. Weights that ship are used where any model would do."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from hypothesis import settings
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_ray.models.components import Components, load_components, quiet_libraries
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.toyworld.photoshoot import write_photographs
from tests.integration.seaweed import FAULTS_VARIABLE
from tests.published_models import SD15, SD15_INPAINTING, SD21, build_published

torch.set_num_threads(1)
# What the user's cache remembers is of other versions of the code.
_CACHE = tempfile.TemporaryDirectory(prefix="dreambooth-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
# Beside another process of tests a worker of Ray would hardly be heard, as polite as it is.
os.environ.setdefault("RAY_worker_niceness", "0")
# No timing is asserted, hypothesis's deadline among them.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
quiet_libraries()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, help="spoil every 20th request to SeaweedFS, by a seed")


def pytest_configure(config: pytest.Config) -> None:
    """Tell SeaweedFS's tests of --faults."""
    if (seed := config.getoption("--faults")) is not None:
        os.environ[FAULTS_VARIABLE] = str(seed)


@pytest.fixture(scope="session")
def toy_model() -> Path:
    return model_directory("toyworld")


@pytest.fixture
def toy_parts(toy_model: Path) -> Components:
    return load_components(toy_model)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> dict[str, Path]:
    """Random LoRAs of the toy model in peft's format, one of them DoRA, by name."""
    folders = {}
    for seed, name in enumerate(["one", "two", "dora"]):
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        torch.manual_seed(seed)
        parts = load_components(toy_model)
        dora = name == "dora"
        for part, targets in {
            "unet": ["to_q", "to_v"] if name == "one" else ["to_k", "to_out.0"],
            "text_encoder": ["q_proj", "v_proj"],
        }.items():
            config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, use_dora=dora)
            get_peft_model(getattr(parts, part), config).save_pretrained(
                folders[name] / part, save_embedding_layers=False
            )
    return folders


@pytest.fixture(scope="session")
def inpainting_model(tmp_path_factory: pytest.TempPathFactory, other_model: Path) -> Path:
    """The other model with a UNet of nine input channels."""
    folder = tmp_path_factory.mktemp("inpainting") / "model"
    shutil.copytree(other_model, folder)
    torch.manual_seed(1)
    config = UNet2DConditionModel.load_config(other_model, subfolder="unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, 7, "robot", 3, size_px=96)
    return folder


def save_random_model(
    folder: Path,
    tokenizer: CLIPTokenizer,
    vae: dict[str, Any],
    unet: dict[str, Any],
    text_encoder: dict[str, Any],
    scheduler: dict[str, Any],
) -> None:
    """Write a Stable Diffusion. vae to scheduler: what each configuration has beside the usual"""
    num_blocks = len(vae["block_out_channels"])
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * num_blocks,
            up_block_types=("UpDecoderBlock2D",) * num_blocks,
            latent_channels=4,
            **vae,
        ),
        unet=UNet2DConditionModel(attention_head_dim=4, norm_num_groups=8, **unet),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                **text_encoder,
            )
        ),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            **scheduler,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Path:
    """A random Stable Diffusion of sizes the toy has not: 77 tokens, 8x VAE, four blocks, v."""
    folder = tmp_path_factory.mktemp("other") / "model"
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(toy_model / "tokenizer", model_max_length=77)
    blocks = (16, 16, 32, 32)
    save_random_model(
        folder,
        tokenizer,
        {"block_out_channels": blocks, "norm_num_groups": 8, "sample_size": 128},
        {
            "sample_size": 16,
            "block_out_channels": blocks,
            "layers_per_block": 2,
            "cross_attention_dim": 48,
        },
        {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3},
        {"prediction_type": "v_prediction", "set_alpha_to_one": False},
    )
    return folder


@pytest.fixture
def tile() -> Image.Image:
    return Image.new("RGB", (64, 64), (200, 30, 30))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Path:
    """The smallest random Stable Diffusion that has every kind of layer: images of 64 px."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(toy_model / "tokenizer", model_max_length=16)
    save_random_model(
        folder,
        tokenizer,
        {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "sample_size": 64},
        {
            "sample_size": 16,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
        },
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
        {},
    )
    return folder


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.5 as published, narrow and random."""
    return build_published(SD15, tmp_path_factory.mktemp("published") / SD15)


@pytest.fixture(scope="session")
def sd15_inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its inpainting model, narrow and random."""
    folder = tmp_path_factory.mktemp("published") / SD15_INPAINTING
    return build_published(SD15_INPAINTING, folder)


@pytest.fixture(scope="session")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 2.1 as published, narrow and random."""
    return build_published(SD21, tmp_path_factory.mktemp("published") / SD21)
