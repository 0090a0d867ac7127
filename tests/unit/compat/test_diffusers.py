import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ChromaTransformer2DModel

from dreambooth_ray.compat.diffusers import (
    passing_mask_to_checkpointed_blocks,
    set_component_source,
)


def test_a_saved_part_names_no_folder_of_this_machine(tiny_model: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model, subfolder="vae")
    assert vae.config["_name_or_path"], "diffusers: it keeps the source of a part elsewhere"
    set_component_source(vae, "toyworld")
    vae.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_name_or_path"] == "toyworld"


def test_checkpointed_blocks_of_chroma_are_masked() -> None:
    """diffusers gives blocks with one stream three inputs, and no mask, where they are."""
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=1, joint_attention_dim=6, axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8, approximator_hidden_dim=8, approximator_layers=1,
    ).train()  # fmt: skip
    mask = torch.tensor([[True, False, *[True] * 4]])
    inputs = {
        "hidden_states": torch.randn(1, 4, 4),
        "encoder_hidden_states": torch.randn(1, 2, 6),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(2, 3),
        "attention_mask": mask,
        "return_dict": False,
    }
    (plain,) = transformer(**inputs)
    transformer.enable_gradient_checkpointing()
    assert "_gradient_checkpointing_func" in vars(transformer), "diffusers checkpoints otherwise"
    with passing_mask_to_checkpointed_blocks(transformer, mask):
        (checkpointed,) = transformer(**inputs)
    checkpointed.sum().backward()
    assert torch.allclose(plain, checkpointed, atol=1e-6), "diffusers: blocks get other inputs"
    (unmasked,) = transformer(**inputs)
    assert not torch.allclose(plain, unmasked, atol=1e-6), "diffusers masks them by now"
    with passing_mask_to_checkpointed_blocks(transformer, None):
        (left_alone,) = transformer(**inputs)
    assert torch.equal(left_alone, unmasked)
