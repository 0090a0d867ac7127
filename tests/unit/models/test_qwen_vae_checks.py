import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.qwen_vae_checks import check_qwen_vae, expect_qwen_vae, read_qwen_vae

SMALL: dict[str, Any] = {
    "base_dim": 4, "z_dim": 2, "dim_mult": [1, 2], "temperal_downsample": [True],
    "num_res_blocks": 1, "latents_mean": [0.0, 0.5], "latents_std": [1.0, 2.0],
}  # fmt: skip


def list_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    with torch.device("meta"):
        network = AutoencoderKLQwenImage(**config)
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def write(folder: Path, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL | keys))
    return folder


def test_defaults_are_those_of_the_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert expect_qwen_vae(read_qwen_vae(tmp_path)) == list_shapes({})


@settings(max_examples=15, deadline=None)
@given(
    factors=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    in_time=st.lists(st.booleans(), min_size=3, max_size=3),
    num_res_blocks=st.integers(1, 2),
)
def test_shapes_are_the_network_s(
    factors: list[int], in_time: list[bool], num_res_blocks: int
) -> None:
    config = SMALL | {
        "dim_mult": factors,
        "temperal_downsample": in_time[: len(factors) - 1],
        "num_res_blocks": num_res_blocks,
        "input_channels": 3,
        "attn_scales": [],
    }
    # Decoders halve widths where they enlarge images, so that others do not fit.
    config["base_dim"] = 8
    assert expect_qwen_vae(config) == list_shapes(config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"z_dim": 0}, "z_dim=0 must be a whole number above 0"),
        ({"input_channels": 4}, "input_channels=4, and images have 3"),
        ({"dim_mult": [1, 2, 4]}, r"must have one number more than temperal_downsample=\[True\]"),
        ({"dim_mult": [1, "2"]}, "must be a list of int"),
        ({"temperal_downsample": "no"}, "must be a list of bool"),
        ({"attn_scales": [0.5]}, r"attn_scales=\[0.5\] empty"),
        ({"latents_mean": [0.0]}, "latents_mean must be a list of z_dim=2 numbers"),
        ({"latents_std": [1.0, 0.0]}, "must be above 0"),
        ({"latents_std": None}, "latents_std must be a list"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_qwen_vae(write(tmp_path / "vae", **keys))
