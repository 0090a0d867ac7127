"""Every key of published files is bound to a layer, or the file is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.adapters.binding import MAX_RANK, bind_keys
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.errors import ConfigError
from tests.families.tiny_models import FAMILY_CONFIGS
from tests.unit.adapters.published_keys import (
    Shapes,
    build_table,
    list_names,
    published_flux1,
    read_shapes,
)

REFUSED = {
    "anima_lora_kohya": "of Anima, a family that is not known here",
    "anima_lora_kohya_with_te": "of Anima, a family that is not known here",
    "anima_lora_lokr": "of Anima, a family that is not known here",
    "anima_lora_peft": "of Anima, a family that is not known here",
    "flux_control_lora": "key_norm.scale is of weights of norms, as FLUX.1's control adapters have",
    # As published, its factors' product is 1024 by 3072.
    "flux_lokr_bfl": "img_attn.proj changes a layer of 1024 by 3072, and .*3072 by 3072",
    "krea2_lora_kohya": "by its names it is of Krea 2$",
    "qwen_image_lora_kohya": "changes a layer of 49152 by 49152",
}


@pytest.mark.parametrize("name", list_names())
def test_a_published_file_is_bound_key_by_key_or_refused_by_name(name: str) -> None:
    shapes, table = read_shapes(name), published_flux1()
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]) as caught:
            bind_keys(shapes, table)
        assert "\n" not in str(caught.value)
        return
    binding = bind_keys(shapes, table)
    assert sorted(key for layer in binding.layers for key in layer.keys.values()) == sorted(shapes)
    places = [(p.part, p.layer) for layer in binding.layers for p in layer.places]
    assert len(places) == len(set(places))
    assert ("dora" in binding.kinds) == ("dora" in name)


@pytest.mark.parametrize("name", ["qwen_image_lora_diffusers", "qwen_image_lora_kohya"])
def test_published_files_of_qwen_image(name: str) -> None:
    shapes, table = read_shapes(name), read_table("qwen-image")
    if name in REFUSED:
        # As published, the product of its factors is far larger than the layer.
        with pytest.raises(ConfigError, match=r"attn_add_k_proj changes .* is 3072 by 3072"):
            bind_keys(shapes, table)
        # With factors that fit, every name of it binds.
        fitting = {
            key: (1, 1) if key.endswith("w1") else find_size(table, key)
            for key in shapes
            if not key.endswith("alpha")
        }
        assert len(bind_keys(fitting, table).layers) == 8
        return
    binding = bind_keys(shapes, table)
    assert sorted(key for layer in binding.layers for key in layer.keys.values()) == sorted(shapes)


def test_a_published_file_of_krea_2_is_bound_key_by_key() -> None:
    shapes = read_shapes("krea2_lora_kohya")
    binding = bind_keys(shapes, read_table("krea2"))
    assert sorted(key for layer in binding.layers for key in layer.keys.values()) == sorted(shapes)
    places = [(p.part, p.layer) for layer in binding.layers for p in layer.places]
    assert len(places) == len(set(places))


def find_size(table: LayerTable, key: str) -> tuple[int, ...]:
    (place,) = table.find(key.rpartition(".")[0])
    return place.shape


def test_rows_of_fused_layers_are_found() -> None:
    table = published_flux1()
    rows = {place.layer: place.rows for place in table.find("lora_unet_single_blocks_7_linear1")}
    block = "single_transformer_blocks.7"
    assert rows == {
        f"{block}.attn.to_q": ((0, 3072),),
        f"{block}.attn.to_k": ((3072, 6144),),
        f"{block}.attn.to_v": ((6144, 9216),),
        f"{block}.proj_mlp": ((9216, 21504),),
    }
    (place,) = table.find("diffusion_model.final_layer.adaLN_modulation.1")
    assert place.layer == "norm_out.linear"
    assert place.rows == ((3072, 6144), (0, 3072))
    assert not place.is_whole


@pytest.mark.parametrize(
    ("name", "part", "layer"),
    [
        (
            "lora_te1_text_model_encoder_layers_3_mlp_fc1",
            "text_encoder",
            "encoder.layers.3.mlp.fc1",
        ),
        (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1",
            "text_encoder",
            "encoder.layers.3.mlp.fc1",
        ),
        (
            "lora_te3_encoder_block_2_layer_0_SelfAttention_q",
            "text_encoder_2",
            "encoder.block.2.layer.0.SelfAttention.q",
        ),
        ("guidance_in.in_layer", "transformer", "time_text_embed.guidance_embedder.linear_1"),
        ("base_model.model.transformer.x_embedder", "transformer", "x_embedder"),
        ("lycoris_transformer_blocks_0_attn_to_q", "transformer", "transformer_blocks.0.attn.to_q"),
    ],
)
def test_one_layer_has_many_names(name: str, part: str, layer: str) -> None:
    (place,) = published_flux1().find(name)
    assert (place.part, place.layer) == (part, layer)


@pytest.mark.parametrize(
    "model",
    ["sd3", "z-image", "flux2-klein", "flux2-dev", "qwen-image", "chroma", "krea2", "sana"],
)
def test_every_layer_of_a_family_is_found_by_its_own_name(model: str) -> None:
    table = read_table(model)
    for part, layers in table.layers.items():
        for layer in layers:
            (place,) = table.find(f"{part}.{layer}")
            assert (place.part, place.layer) == (part, layer)


def read_table(model: str) -> LayerTable:
    from dreambooth_ray.models.family import find_family

    folders = {
        "sd3": "stable-diffusion-3-medium",
        "z-image": "z-image",
        "flux2-klein": "flux.2-klein-base-4b",
        "flux2-dev": "flux.2-dev",
        "qwen-image": "qwen-image",
        "chroma": "chroma",
        "krea2": "krea-2-raw",
        "sana": "sana-1600m-1024px",
    }
    directory = FAMILY_CONFIGS / folders[model]
    return build_table(find_family(directory), directory)


@pytest.mark.parametrize(
    ("model", "name", "layers"),
    [
        (
            "sd3",
            "lora_unet_joint_blocks_3_context_block_attn_qkv",
            [f"transformer_blocks.3.attn.add_{x}_proj" for x in "qkv"],
        ),
        (
            "sd3",
            "diffusion_model.joint_blocks.3.x_block.mlp.fc1",
            ["transformer_blocks.3.ff.net.0.proj"],
        ),
        (
            "z-image",
            "diffusion_model.layers.2.attention.qkv",
            [f"layers.2.attention.to_{x}" for x in "qkv"],
        ),
        ("z-image", "diffusion_model.layers.2.attention.out", ["layers.2.attention.to_out.0"]),
        ("z-image", "lora_unet_x_embedder", ["all_x_embedder.2-1"]),
        (
            "flux2-klein",
            "lora_unet_double_blocks_1_txt_attn_qkv",
            [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        ),
        (
            "flux2-klein",
            "diffusion_model.single_blocks.4.linear1",
            ["single_transformer_blocks.4.attn.to_qkv_mlp_proj"],
        ),
        ("flux2-klein", "img_in", ["x_embedder"]),
        (
            "flux2-dev",
            "diffusion_model.guidance_in.in_layer",
            ["time_guidance_embed.guidance_embedder.linear_1"],
        ),
        (
            "flux2-dev",
            "diffusion_model.double_blocks.7.img_attn.qkv",
            [f"transformer_blocks.7.attn.to_{x}" for x in "qkv"],
        ),
        (
            "flux2-dev",
            "lora_unet_single_blocks_47_linear2",
            ["single_transformer_blocks.47.attn.to_out"],
        ),
        (
            "chroma",
            "lora_unet_single_blocks_3_linear1",
            [
                *(f"single_transformer_blocks.3.attn.to_{x}" for x in "qkv"),
                "single_transformer_blocks.3.proj_mlp",
            ],
        ),
        (
            "krea2",
            "diffusion_model.blocks.27.attn.wo",
            ["transformer_blocks.27.attn.to_out.0"],
        ),
        (
            "krea2",
            "base_model.model.txtfusion.refiner_blocks.1.mlp.down",
            ["text_fusion.refiner_blocks.1.ff.down"],
        ),
        ("krea2", "lora_unet_last_linear", ["final_layer.linear"]),
        (
            "qwen-image",
            "lora_unet_transformer_blocks_1_attn_to_out_0",
            ["transformer_blocks.1.attn.to_out.0"],
        ),
        (
            "qwen-image",
            "diffusion_model.transformer_blocks.59.txt_mlp.net.0.proj",
            ["transformer_blocks.59.txt_mlp.net.0.proj"],
        ),
    ],
)
def test_names_of_authors_are_known(model: str, name: str, layers: list[str]) -> None:
    assert [place.layer for place in read_table(model).find(name)] == layers


LAYER = "transformer.transformer_blocks.0.attn.to_q"
GOOD: Shapes = {f"{LAYER}.lora_A.weight": (4, 3072), f"{LAYER}.lora_B.weight": (3072, 4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nowhere.lora_A.weight": (4, 8)}, "nowhere.lora_A.weight binds to no layer"),
        ({"../../etc/passwd.lora_A.weight": (4, 8)}, r"etc/passwd.lora_A.weight binds to no"),
        ({"x\n\x1b[2Jy.lora_A.weight": (4, 8)}, r"'x\\n\\x1b\[2Jy.lora_A.weight' binds to"),
        ({"a" * 5000 + ".lora_A.weight": (4, 8)}, r"a{120}\.\.\. binds to no layer"),
        ({f"{LAYER}.lora_B.weight": (3072, 5)}, "factors that do not go together"),
        ({f"{LAYER}.lora_B.weight": (0, 4)}, "one of them is empty"),
        ({f"{LAYER}.lora_B.weight": (1536, 4)}, "changes a layer of 1536 by 3072, .*another model"),
        (
            {f"{LAYER}.lora_A.weight": (8192, 3072), f"{LAYER}.lora_B.weight": (3072, 8192)},
            f"of rank 8192; 1 to {MAX_RANK}",
        ),
        ({f"{LAYER}.lora_down.weight": (4, 3072)}, "say the same twice"),
        ({f"{LAYER}.alpha": (2,)}, "is no single number"),
        ({f"{LAYER}.hada_w1_a": (3072, 4)}, "of loha and lora at once"),
        ({f"{LAYER}.dora_scale": (77, 1)}, r"magnitudes \[77, 1\]"),
        ({f"{LAYER}.diff": (3072, 3072)}, "whole weights"),
        ({f"{LAYER}.lora_B.bias": (3072,)}, "biases beside"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072),
          "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (9216, 4)},
         "are both for transformer.transformer_blocks.0.attn.to_q"),
        ({"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (4, 768)},
         "by its names it is of Stable Diffusion XL"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_in_one_line(changes: Shapes, message: str) -> None:
    bind_keys(GOOD, published_flux1())
    with pytest.raises(ConfigError, match=message) as caught:
        bind_keys(GOOD | changes, published_flux1())
    assert str(caught.value).isprintable()


def test_a_missing_factor_is_named() -> None:
    with pytest.raises(ConfigError, match="to_q has no up beside down"):
        bind_keys({f"{LAYER}.lora_A.weight": (4, 3072)}, published_flux1())
    with pytest.raises(ConfigError, match="holds no tensors"):
        bind_keys({}, published_flux1())


@given(st.dictionaries(st.text(max_size=60), st.lists(st.integers(0, 5), max_size=5), max_size=4))
def test_any_file_is_bound_or_refused(values: dict[str, list[int]]) -> None:
    shapes = {key: tuple(shape) for key, shape in values.items()}
    ends = (".lora_A.weight", ".alpha", ".lokr_w1", ".lokr_w2", ".hada_w1_a", ".dora_scale")
    for number, (key, shape) in enumerate(list(shapes.items())):
        shapes[LAYER + ends[number % len(ends)]] = shape
        shapes[key + ends[-number]] = shape
    with pytest.raises(ConfigError) as caught:
        bind_keys(shapes, published_flux1())
    assert str(caught.value).isprintable()
