"""Names of layers against the rules by which readers of kohya's files look for them."""

import pytest
from torch import nn

from dreambooth_ray.bundles import kohya, ldm
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.stable_diffusion import find_kohya_layer
from dreambooth_ray.models.families.stable_diffusion_xl import FAMILY as XL
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.single_file_names import UNET_PREFIX
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.published_models import CONFIGS, SD15, SD21, SDXL, build_full_width

# Classes inside which sd-scripts' networks/lora.py looks for linear layers and convolutions.
TARGET_CLASSES = {
    "unet": {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"},
    "text_encoder": {"CLIPAttention", "CLIPMLP"},
}
NAMES = KohyaNames(find_kohya_layer, lambda _: {})
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}


def read_names(network: nn.Module, part: str) -> dict[str, str]:
    """sd-scripts' name of each layer that they know, by its own name: prefix, then '_' for '.'."""
    # transformers had one more level when the names were chosen.
    level = "text_model." if part == "text_encoder" else ""
    return {
        f"{name}.{child_name}": f"{PREFIXES[part]}.{level}{name}.{child_name}".replace(".", "_")
        for name, module in network.named_modules()
        if type(module).__name__ in TARGET_CLASSES[part]
        for child_name, child in module.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d)
    }


@pytest.mark.parametrize("model", [SD15, SD21])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_layers_are_named_as_their_readers_name_them(model: str, part: str) -> None:
    network = build_full_width(model, part)
    names = read_names(network, part)
    assert len(set(names.values())) == len(names) > 60
    weights = {f"{n}.lora_{x}.weight": nn.Parameter() for n in names for x in ("A", "B")}
    written = kohya.rename_weights(NAMES, CONFIGS / model, part, weights, 1.0)
    assert {n.split(".")[0] for n in written} == set(names.values())


@pytest.mark.parametrize("model", [SD15, SD21])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_layers_that_readers_pass_over_are_refused(model: str, part: str) -> None:
    network = build_full_width(model, part)
    layers = {n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    unread_layers = layers - read_names(network, part).keys()
    assert ("conv_in" in unread_layers) == (part == "unet")
    for layer in unread_layers:
        with pytest.raises(ConfigError, match=f"--format=kohya: .*{layer}"):
            kohya.find_kohya_layers(NAMES, CONFIGS / model, part, [layer])


def test_comfyui_knows_every_layer_by_the_same_name() -> None:
    """Its key map: lora_unet_ and each weight's name in diffusers, and a table for CLIP."""
    table = ("mlp.fc1", "mlp.fc2", *(f"self_attn.{x}_proj" for x in ("k", "q", "v", "out")))
    for model in (SD15, SD21):
        unet = build_full_width(model, "unet")
        keys = {
            "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            for name, _ in unet.named_parameters()
            if name.endswith(".weight")
        }
        assert set(read_names(unet, "unet").values()) <= keys
        keys = {
            f"lora_te_text_model_encoder_layers_{b}_{c.replace('.', '_')}"
            for b in range(32)
            for c in table
        }
        text_encoder = build_full_width(model, "text_encoder")
        assert set(read_names(text_encoder, "text_encoder").values()) <= keys


# ComfyUI's key map for SDXL: each weight of the UNet by its original name, and a table for CLIP.
COMFYUI_TEXT = "{prefix}_text_model_encoder_layers_{block}_{layer}"


@pytest.mark.parametrize(
    ("part", "prefix"),
    [("unet", "lora_unet"), ("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2")],
)
def test_readers_know_every_layer_of_stable_diffusion_xl(part: str, prefix: str) -> None:
    network = PUBLISHED_MODELS["sdxl"].build_on_meta(part)
    layers = read_names(network, "unet" if part == "unet" else "text_encoder")
    assert XL.kohya_names is not None
    found = kohya.find_kohya_layers(XL.kohya_names, CONFIGS / SDXL, part, layers)
    names = [place.name for place in found.values()]
    if part == "unet":
        originals = ldm.convert_unet(network.state_dict())
        known = {
            f"{prefix}_{n.removeprefix(UNET_PREFIX).removesuffix('.weight').replace('.', '_')}"
            for n in originals
        }
        assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k" in names
        assert {"lora_unet_input_blocks_3_0_op", "lora_unet_output_blocks_2_2_conv"} <= set(names)
    else:
        table = ("mlp_fc1", "mlp_fc2", *(f"self_attn_{x}_proj" for x in ("k", "q", "v", "out")))
        known = {
            COMFYUI_TEXT.format(prefix=prefix, block=block, layer=layer)
            for block in range(32)
            for layer in table
        }
    assert len(set(names)) == len(names) > 60
    assert set(names) <= known
    other = "conv_in" if part == "unet" else "text_projection"
    with pytest.raises(ConfigError, match=f"no adapter of {other}"):
        kohya.find_kohya_layers(XL.kohya_names, CONFIGS / SDXL, part, [other])
