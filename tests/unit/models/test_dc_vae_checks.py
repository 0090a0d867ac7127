import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.dc_vae_checks import check_dc_vae, list_dc_vae_shapes, read_dc_vae_config

FORM = {"upsample_block_type": "interpolate", "downsample_block_type": "conv"}
KINDS = ["ResBlock", "EfficientViTBlock"]
SMALL: dict[str, Any] = {
    **FORM, "attention_head_dim": 4, "latent_channels": 4,
    **{f"{half}_block_types": KINDS for half in ("encoder", "decoder")},
    **{f"{half}_block_out_channels": [8, 16] for half in ("encoder", "decoder")},
    **{f"{half}_layers_per_block": [1, 2] for half in ("encoder", "decoder")},
    **{f"{half}_qkv_multiscales": [[], [5]] for half in ("encoder", "decoder")},
}  # fmt: skip


def list_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    with torch.device("meta"):
        network = AutoencoderDC(**config)
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def write(folder: Path, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keys))
    return folder


def test_defaults_are_those_of_the_class(tmp_path: Path) -> None:
    assert list_dc_vae_shapes(read_dc_vae_config(write(tmp_path / "vae", **FORM))) == list_shapes(
        FORM
    )


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
    num_layers=st.lists(st.integers(1, 2), min_size=4, max_size=4),
    scales=st.lists(st.lists(st.sampled_from([3, 5]), max_size=2), min_size=4, max_size=4),
)
def test_shapes_are_the_network_s(
    kinds: list[str], num_layers: list[int], scales: list[list[int]]
) -> None:
    count = len(kinds)
    config = SMALL | {"in_channels": 3}
    for half in ("encoder", "decoder"):
        config |= {
            f"{half}_block_types": kinds,
            f"{half}_block_out_channels": [8, 8, 16, 16][:count],
            f"{half}_layers_per_block": num_layers[:count],
            f"{half}_qkv_multiscales": scales[:count],
        }
    assert list_dc_vae_shapes(config) == list_shapes(config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"latent_channels": 0}, "latent_channels=0 must be a whole number above 0"),
        ({"latent_channels": 3}, "latent_channels=3 does not divide 16"),
        ({"downsample_block_type": "pixel_unshuffle"}, "take that of Sana"),
        ({"decoder_norm_types": ["batch_norm", "rms_norm"]}, "take that of Sana"),
        ({"scaling_factor": 0}, "scaling_factor=0 must be a number above 0"),
        ({"encoder_layers_per_block": [0, 2]}, r"encoder_layers_per_block=\[0, 2\] is not what"),
        ({"decoder_layers_per_block": [1]}, "one for each of 2 blocks"),
        ({"encoder_block_types": ["ResBlock", "Other"]}, "encoder_block_types"),
        ({"decoder_qkv_multiscales": [5, 5]}, "decoder_qkv_multiscales"),
        ({"decoder_block_out_channels": "wide"}, "different numbers of blocks"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_dc_vae(write(tmp_path / "vae", **(SMALL | keys)))
