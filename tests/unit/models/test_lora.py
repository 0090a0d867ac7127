from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import lora, peft_files
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_train_method

INPUTS = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 16, 32)


def trained_parts(model: Path, *overrides: str) -> Components:
    """Adapters as training may leave them: every one has an effect."""
    text = "subject: {photos: p, class_noun: robot}\ntrain: {method: lora, text_encoder: true}"
    parts = load_components(model)
    apply_train_method(parse_config(text, "x", list(overrides)), parts)
    torch.manual_seed(3)
    for part in (parts.unet, parts.text_encoder):
        for p in part.parameters():
            if p.requires_grad:
                p.data += 0.1 * torch.randn_like(p)
    return parts


@pytest.mark.parametrize("dora", ["false", "true"])
def test_peft_reads_what_was_written_and_fusing_gives_the_same(
    tiny_model: Path, tmp_path: Path, dora: str
) -> None:
    targets = "train.lora.target_modules=[to_q,to_k,to_v,to_out.0,conv1,ff.net.2]"
    parts = trained_parts(tiny_model, f"train.lora.dora={dora}", "train.lora.alpha=3", targets)
    lora.save_adapters(parts.unet, tmp_path / "unet")
    lora.save_adapters(parts.text_encoder, tmp_path / "text_encoder")
    plain = load_components(tiny_model)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        unet_output = parts.unet.eval()(*INPUTS).sample
        untouched = plain.unet.eval()(*INPUTS).sample
        read = PeftModel.from_pretrained(plain.unet, str(tmp_path / "unet"))
        assert torch.equal(read(*INPUTS).sample, unet_output)
        fused = lora.fuse_adapters(load_components(tiny_model).unet, tmp_path / "unet").eval()
        assert torch.allclose(fused(*INPUTS).sample, unet_output, atol=1e-4)
        assert (unet_output - untouched).abs().max() > 1e-2
        text = lora.fuse_adapters(plain.text_encoder, tmp_path / "text_encoder").eval()
        text_output = parts.text_encoder.eval()(ids).last_hidden_state
        assert torch.allclose(text(ids).last_hidden_state, text_output, atol=1e-4)
    assert not [n for n, _ in fused.named_modules() if "lora" in n]


def test_a_pickled_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    parts = trained_parts(tiny_model)
    lora.save_adapters(parts.unet, tmp_path / "unet")
    (tmp_path / "unet" / peft_files.WEIGHTS).unlink()
    torch.save({"x": torch.ones(1)}, tmp_path / "unet" / "adapter_model.bin")
    with pytest.raises(ConfigError, match="safetensors alone"):
        lora.fuse_adapters(load_components(tiny_model).unet, tmp_path / "unet")


def test_an_adapter_of_antiny_model_is_refused(
    tiny_model: Path, toy_model: Path, tmp_path: Path
) -> None:
    lora.save_adapters(trained_parts(tiny_model).unet, tmp_path / "unet")
    with pytest.raises(ConfigError, match="does not fit the base model"):
        lora.fuse_adapters(load_components(toy_model).unet, tmp_path / "unet")


def test_the_same_weights_are_written_as_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        lora.save_adapters(trained_parts(tiny_model).unet, tmp_path / name)
    for file in (peft_files.SETTINGS, peft_files.WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


class TwoStreams(nn.Module):
    """One block whose last layer is in a list, and one whose last layer has that list's name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_out": nn.ModuleList()})
        self.first["to_out"].append(nn.Linear(4, 4))
        self.second = nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_out": nn.Linear(4, 4)})


def test_a_target_that_lists_of_layers_are_named_like_means_layers_alone() -> None:
    model, settings = TwoStreams(), LoraConfig(rank=2)
    lora.inject_adapters(model, settings, ("to_q", "to_out"), seed=0)
    adapted = {
        name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad
    }
    assert adapted == {"first.to_q", "second.to_q", "second.to_out"}
