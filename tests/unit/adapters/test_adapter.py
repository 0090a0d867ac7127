"""Adapters of files, with their numbers: against peft, and refused where they are no numbers."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from torch import Tensor

from dreambooth_ray.adapters.adapter import read_adapter
from dreambooth_ray.adapters.layer_adapter import add_deltas_to_weight, find_layer
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.unit.adapters.published_keys import write_file

TARGETS = ["to_q", "to_out.0", "conv1"]
CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False,
                       rank_pattern={"conv1": 2}, alpha_pattern={"mid_block.*to_q": 7}),
    "rslora": LoraConfig(r=4, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False,
                         use_rslora=True),
    "dora": LoraConfig(r=3, target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "loha": LoHaConfig(r=3, alpha=5, target_modules=TARGETS, init_weights=False),
    "loha-kernels": LoHaConfig(r=3, target_modules=TARGETS, init_weights=False,
                               use_effective_conv2d=True),
    "lokr": LoKrConfig(r=3, alpha=2, target_modules=TARGETS, init_weights=False),
    "lokr-both": LoKrConfig(r=2, target_modules=TARGETS, init_weights=False, decompose_both=True,
                            use_effective_conv2d=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def table(toy_model: Path) -> LayerTable:
    return LayerTable.of_directory(toy_model)


@pytest.fixture(scope="module")
def base(toy_model: Path) -> Components:
    return load_components(toy_model)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_makes_is_read_as_peft_merges_it(
    toy_model: Path, table: LayerTable, base: Components, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    model = get_peft_model(load_components(toy_model).unet, CONFIGS[kind])
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(1.1)
    model.save_pretrained(tmp_path / "unet")
    merged = model.merge_and_unload().state_dict()
    for path in (tmp_path, tmp_path / "unet", tmp_path / "unet" / "adapter_model.safetensors"):
        adapter = read_adapter(path, table)
        assert adapter.kinds == {
            kind.split("-", maxsplit=1)[0].replace("rs", ""),
            *(["lora"] if kind == "dora" else []),
        }
        weights = dict(base.unet.state_dict())
        for (part, layer), own in adapter.layers.items():
            assert part == "unet"
            module = find_layer(base.unet, layer)
            assert module is not None
            weights[f"{layer}.weight"] = add_deltas_to_weight(
                module.get_parameter("weight"), [(own, 1.0)]
            )
        changed = [n for n in merged if not torch.equal(merged[n], base.unet.state_dict()[n])]
        assert len(changed) == len(adapter.layers)
        for name, weight in merged.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-4)


def test_an_embedding_can_have_an_adapter(
    toy_model: Path, table: LayerTable, base: Components, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["token_embedding"],
                        init_lora_weights=False)  # fmt: skip
    model = get_peft_model(load_components(toy_model).text_encoder, config)
    model.save_pretrained(tmp_path / "text_encoder", save_embedding_layers=False)
    merged = model.merge_and_unload().get_input_embeddings().weight
    ((key, own),) = read_adapter(tmp_path, table).layers.items()
    assert key[0] == "text_encoder"
    weight = base.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(
        add_deltas_to_weight(weight, [(own, 1.0)]), merged, atol=1e-5, rtol=1e-4
    )
    engine = Engine(toy_model)
    plain = engine.sample([Request("a robot", 0, num_inference_steps=1)])[0].latents
    engine.add_adapter("words", tmp_path)
    request = Request("a robot", 0, num_inference_steps=1, adapter="words")
    assert not torch.equal(engine.sample([request])[0].latents, plain)


LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def tensors(base: Components) -> dict[str, Tensor]:
    width = base.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.in_features
    return {
        f"{LAYER}.lora_down.weight": torch.randn(2, width),
        f"{LAYER}.lora_up.weight": torch.randn(width, 2),
        f"{LAYER}.alpha": torch.tensor(4.0),
    }


def test_alpha_over_the_rank_scales(
    table: LayerTable, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    path = write_file(tmp_path / "style.safetensors", tensors)
    (layer,) = read_adapter(path, table).layers.values()
    down, up, _ = tensors.values()
    delta = layer.compute_delta(torch.zeros(up.shape[0], down.shape[1]))
    torch.testing.assert_close(delta, 2 * up @ down)


def test_magnitudes_of_inputs_scale_columns(
    table: LayerTable, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """As OneTrainer and LyCORIS have them; peft's are of outputs."""
    down, up, _ = tensors.values()
    weight, scale = torch.randn(up.shape[0], down.shape[1]), torch.rand(1, down.shape[1]) + 1
    path = write_file(tmp_path / "x.safetensors", tensors | {f"{LAYER}.dora_scale": scale})
    (layer,) = read_adapter(path, table).layers.values()
    adapted = weight + 2 * up @ down
    expected = scale * adapted / adapted.norm(dim=0, keepdim=True)
    torch.testing.assert_close(weight + layer.compute_delta(weight), expected)
    path = write_file(tmp_path / "y.safetensors", tensors | {f"{LAYER}.dora_scale": scale.T})
    (layer,) = read_adapter(path, table).layers.values()
    expected = scale.T * adapted / adapted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weight + layer.compute_delta(weight), expected)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(
    table: LayerTable, tmp_path: Path, tensors: dict[str, Tensor], number: float
) -> None:
    tensors[f"{LAYER}.lora_up.weight"][3, 1] = number
    path = write_file(tmp_path / "style.safetensors", tensors)
    with pytest.raises(ConfigError, match=r"to_q\.lora_up\.weight holds numbers that are not"):
        read_adapter(path, table)


def test_a_damaged_file_and_a_pickle_are_refused(
    table: LayerTable, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    path = write_file(tmp_path / "style.safetensors", tensors)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="is no whole safetensors file"):
        read_adapter(path, table)
    path.write_bytes(b"\xff" * 400)
    with pytest.raises(ConfigError, match="is no whole safetensors file"):
        read_adapter(path, table)
    pickled = tmp_path / "style.pt"
    torch.save(tensors, pickled)
    with pytest.raises(ConfigError, match="pickles can run code"):
        read_adapter(pickled, table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type='VERA' is not read"),
        ({"modules_to_save": ["conv_in"]}, "sets modules_to_save"),
        ({"bias": "all"}, "trains biases"),
        ({"rank_pattern": {".*to_q": 0}}, "rank 0"),
        ({"rank_pattern": {"to_[q": 2}}, "a pattern that is none"),
        ({"r": "many"}, "no numbers for rank and alpha"),
    ],
)
def test_settings_of_peft_that_are_not_known_are_refused(
    table: LayerTable,
    tmp_path: Path,
    tensors: dict[str, Tensor],
    changes: dict[str, object],
    message: str,
) -> None:
    own = {key: tensor for key, tensor in tensors.items() if not key.endswith("alpha")}
    write_file(tmp_path / "adapter_model.safetensors", own)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message):
        read_adapter(tmp_path, table)
