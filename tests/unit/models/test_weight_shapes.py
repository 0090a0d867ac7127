from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.models.part_configs import read_part_config
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.models.weight_shapes import find_mismatch


@pytest.mark.parametrize("model", ["sd15", "sd21", "sd15_inpainting", "toy_model", "other_model"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_models_go_with_their_configurations(
    request: pytest.FixtureRequest, model: str, part: str
) -> None:
    directory: Path = request.getfixturevalue(model)
    shapes = find_weights(directory / part, part).read_shapes()
    assert find_mismatch(part, read_part_config(directory, part), shapes) == ""


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "layers_per_block", 1),
        ("unet", "layers_per_block", 3),
        ("unet", "norm_num_groups", 3),
        ("unet", "attention_head_dim", 5),
        ("unet", "block_out_channels", [32, 64, 64]),
        ("unet", "block_out_channels", [32, 64, 64, 128]),
        ("unet", "up_block_types", ["UpBlock2D"]),
        ("vae", "layers_per_block", 3),
        ("vae", "out_channels", 4),
        ("vae", "latent_channels", 8),
        ("text_encoder", "num_hidden_layers", 1),
        ("text_encoder", "num_hidden_layers", 3),
        ("text_encoder", "intermediate_size", 99),
        ("text_encoder", "num_attention_heads", 5),
        ("text_encoder", "max_position_embeddings", 64),
    ],
)
def test_a_changed_key_is_a_mismatch(sd15: Path, part: str, key: str, value: Any) -> None:
    shapes = find_weights(sd15 / part, part).read_shapes()
    assert find_mismatch(part, {**read_part_config(sd15, part), key: value}, shapes)


def test_attention_of_autoencoders_may_have_its_old_names(sd15: Path) -> None:
    config, shapes = (
        read_part_config(sd15, "vae"),
        find_weights(sd15 / "vae", "vae").read_shapes(),
    )
    modern, old = ("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")
    renamed = dict(shapes)
    for new_name, old_name in zip(modern, old, strict=True):
        renamed = {k.replace(f".{old_name}.", f".{new_name}."): v for k, v in renamed.items()}
    assert renamed.keys() != shapes.keys()
    assert find_mismatch("vae", config, renamed) == find_mismatch("vae", config, shapes) == ""
    del shapes["decoder.mid_block.attentions.0.value.weight"]
    assert "decoder.mid_block.attentions.0.to_v.weight" in find_mismatch("vae", config, shapes)
