from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import precision
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.families.flux2_klein import FAMILY as KLEIN
from dreambooth_ray.models.families.stable_diffusion import FAMILY as SD
from dreambooth_ray.models.trainable_params import apply_train_method
from tests.families.tiny_models import build_tiny

CPU = torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_what_is() -> None:
    assert precision.resolve_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"device='cuda': this machine has 0 GPUs.*take cpu"):
        precision.resolve_device("cuda")
    with pytest.raises(ConfigError, match="device='gpu' is none; take auto"):
        precision.resolve_device("gpu")
    with pytest.raises(ConfigError, match="device='meta' is not supported"):
        precision.resolve_device("meta")
    two_gpus = patch.object(torch.cuda, "device_count", return_value=2)
    with two_gpus, pytest.raises(ConfigError, match="take cuda:0 to cuda:1"):
        precision.resolve_device("cuda:2")


def test_sampling_is_in_half_on_a_gpu_alone() -> None:
    gpu = torch.device("cuda")
    assert precision.resolve_sampling_dtype(CPU, SD) == torch.float32
    assert precision.resolve_sampling_dtype(gpu, SD) == torch.float16
    assert precision.resolve_sampling_dtype(gpu, KLEIN) == torch.bfloat16
    assert precision.resolve_sampling_dtype(gpu, SD, "float32") == torch.float32
    with pytest.raises(ConfigError, match="dtype='fp8' is none; take auto, float32"):
        precision.resolve_sampling_dtype(CPU, SD, "fp8")


def test_a_vae_keeps_float32_unless_it_says_otherwise(toy_parts: Components) -> None:
    precision.place_for_sampling(toy_parts, CPU, torch.bfloat16)
    assert toy_parts.vae.dtype == torch.float32
    assert toy_parts.unet.dtype == toy_parts.text_encoder.dtype == torch.bfloat16
    toy_parts.vae.register_to_config(force_upcast=False)
    assert precision.choose_vae_dtype(toy_parts.vae, torch.bfloat16) == torch.bfloat16


def test_weights_of_videos_have_no_channels_last(
    toy_parts: Components,
) -> None:
    convolution = toy_parts.vae.encoder.conv_in.weight
    precision.put_channels_last(toy_parts.vae)
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    videos = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3), torch.nn.Conv2d(2, 3, 3))
    precision.put_channels_last(videos)
    assert all(weight.is_contiguous() for weight in videos.parameters())


def test_parts_keep_their_dtypes_where_none_is_asked_for(toy_parts: Components) -> None:
    toy_parts.text_encoder.to(torch.bfloat16)
    precision.place_for_sampling(toy_parts, CPU, None)
    assert toy_parts.unet.dtype == torch.float32
    assert toy_parts.text_encoder.dtype == torch.bfloat16


def test_frozen_layers_in_half_compute_what_autocast_computes(toy_parts: Components) -> None:
    config = parse_config(
        "subject: {photos: p, class_noun: robot}", "x",
        ["train.method=lora", "train.precision=bf16-mixed"],
    )  # fmt: skip
    apply_train_method(config, toy_parts)
    inputs = torch.randn(2, 8, 8, 8), torch.tensor([10, 600]), torch.randn(2, 32, 128)

    def predict() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return torch.as_tensor(toy_parts.unet(*inputs, return_dict=False)[0])

    before = predict()
    assert not precision.has_mixed_dtypes(toy_parts.unet)
    precision.cast_frozen_layers(toy_parts.unet, "bf16-mixed")
    assert precision.has_mixed_dtypes(toy_parts.unet)
    trained = [w for w in toy_parts.unet.parameters() if w.requires_grad]
    assert trained
    assert all(weight.dtype == torch.float32 for weight in trained)
    assert torch.equal(predict(), before)
    with torch.no_grad(), precision.autocast_mixed(toy_parts.unet):
        assert torch.equal(toy_parts.unet(*inputs, return_dict=False)[0], before)


def test_nothing_is_cast_without_mixed_precision(toy_parts: Components) -> None:
    toy_parts.unet.requires_grad_(False)
    precision.cast_frozen_layers(toy_parts.unet, "32")
    assert toy_parts.unet.dtype == torch.float32
    assert isinstance(precision.autocast_mixed(toy_parts.unet).__enter__(), type(None))


def test_encoders_that_can_t_be_trained_are_computed_with_in_half(
    toy_parts: Components, tmp_path: Path
) -> None:
    klein = load_components(build_tiny("flux2-klein", tmp_path / "klein"))
    for precision_name, dtype in (("32", torch.float32), ("bf16-mixed", torch.bfloat16)):
        for parts in (toy_parts, klein):
            precision.cast_untrainable_encoders(parts, precision_name)
        assert toy_parts.text_encoder.dtype == torch.float32
        assert klein.text_encoder.dtype == dtype


def test_a_network_that_a_gpu_has_no_room_for_stays_on_the_host() -> None:
    network, gpu = torch.nn.Linear(256, 1024, bias=False), torch.device("cuda")
    assert precision.choose_fitting_device(network, CPU) == CPU
    for free_bytes, device in ((2**21, gpu), (2**20, CPU)):
        with patch.object(torch.cuda, "mem_get_info", return_value=(free_bytes, 2**30)):
            assert precision.choose_fitting_device(network, gpu) == device
