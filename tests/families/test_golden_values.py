"""The recorded steps hold for the tiny models of today, and say what a script did."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn

from tests.families.golden_cases import GOLDEN_FAMILIES, PRIOR_LOSS_WEIGHT, RANK
from tests.families.golden_values import (
    GOLDEN,
    ROUNDING,
    GoldenRun,
    GoldenStep,
    fill_lora,
    load_golden,
    save_golden,
)
from tests.families.tiny_models import build_tiny

CASES = [(family, case) for family, golden in GOLDEN_FAMILIES.items() for case in golden.cases]


@pytest.fixture(scope="module")
def denoisers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, nn.Module]]:
    """Name of the part and network by family, adapted as the scripts adapt it."""
    networks = {}
    for family, golden in GOLDEN_FAMILIES.items():
        folder = build_tiny(golden.tiny_model, tmp_path_factory.mktemp("tiny") / family)
        part = "unet" if (folder / "unet").is_dir() else "transformer"
        class_name = json.loads((folder / part / "config.json").read_text())["_class_name"]
        network = getattr(diffusers, class_name).from_pretrained(folder / part)
        names = [name.removeprefix(f"{part}.") for name in load_golden(family)["plain"].names]
        targets = sorted({name.removesuffix(".lora_A") for name in names if "lora_A" in name})
        if targets:
            network.requires_grad_(False)
            network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
            fill_lora(part, network)
        networks[family] = part, network
    return networks


@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_recorded_step_is_repeated(
    denoisers: dict[str, tuple[str, nn.Module]], family: str, case: str
) -> None:
    part, network = denoisers[family]
    run = load_golden(family)[case]
    for step in run.steps:
        network.zero_grad()
        output = _forward(network, step)
        size = max(1.0, step.tensors["output"].abs().max().item())
        assert (output - step.tensors["output"]).abs().max() <= ROUNDING * size
        loss = _compute_loss(_compared(family, output, step), step)
        assert loss.item() == pytest.approx(step.loss, rel=1e-5)
        loss.backward()
        gradients = {
            f"{part}.{name.removesuffix('.default.weight')}": parameter.grad
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        }
        recorded = {k: v for k, v in step.gradient_norms.items() if k.startswith(f"{part}.")}
        assert gradients.keys() == recorded.keys()
        for name, gradient in gradients.items():
            assert gradient.norm().item() == pytest.approx(recorded[name], rel=1e-4, abs=1e-6)
            whole = step.tensors.get(f"gradient.{name}")
            if whole is not None:
                assert (gradient - whole).abs().max() <= ROUNDING * max(1.0, recorded[name])


def _forward(network: nn.Module, step: GoldenStep) -> Tensor:
    inputs: dict[str, Any] = {}
    for key, tensor in step.tensors.items():
        if key.startswith("input."):
            name, *number = key.removeprefix("input.").split(".")
            inputs[name] = [*inputs.get(name, []), tensor] if number else tensor
    added = {name: inputs.pop(name) for name in ("time_ids", "text_embeds") if name in inputs}
    if added:
        inputs["added_cond_kwargs"] = added
    if isinstance(network, QwenImageTransformer2DModel):  # whose lists are not recorded
        side = int(inputs["hidden_states"].shape[1] ** 0.5)
        inputs["img_shapes"] = [(1, side, side)]
    output = network(**inputs, return_dict=False)[0]
    return torch.stack(output) if isinstance(output, list) else output


def _compared(family: str, output: Tensor, step: GoldenStep) -> Tensor:
    """What the script compares with its target: Z-Image's sign, unpacked tokens, or, of SD 3, an
    estimate of the clean latents."""
    if family == "sd3":
        return step.tensors["noisy_latents"] - step.tensors["sigmas"] * output
    if family in ("flux1-dev", "qwen-image", "krea2"):
        rows, num_tokens, _ = output.shape
        side = int(num_tokens**0.5)
        patches = output.reshape(rows, side, side, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(rows, -1, 2 * side, 2 * side)
    if family == "z-image":
        return -output.squeeze(2)
    if family in ("flux2-klein", "flux2-dev"):
        rows, num_tokens, channels = output.shape
        side = int(num_tokens**0.5)
        return output.permute(0, 2, 1).reshape(rows, channels, side, side)
    return output


def _compute_loss(prediction: Tensor, step: GoldenStep) -> Tensor:
    tensors = step.tensors
    size = max(1.0, tensors["prediction"].abs().max().item())
    assert (prediction - tensors["prediction"]).abs().max() <= ROUNDING * size
    weights = tensors.get("snr_weights", tensors.get("weighting", torch.ones(1)))
    errors = (prediction - tensors["target"]) ** 2
    rows = (weights.reshape(-1, 1, 1, 1) * errors).mean(dim=(1, 2, 3))
    if step.prior_loss is None:
        return rows.mean()
    instance, prior = rows.chunk(2)
    assert prior.mean().item() == pytest.approx(step.prior_loss, rel=1e-5)
    return instance.mean() + PRIOR_LOSS_WEIGHT * prior.mean()


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
def test_a_recording_says_where_it_is_from(family: str) -> None:
    record = json.loads((GOLDEN / f"{family}.json").read_text())
    assert len(record["diffusers"]["commit"]) == 40
    assert record["diffusers"]["script"].endswith(GOLDEN_FAMILIES[family].script)
    for case, run in load_golden(family).items():
        assert run.facts["arguments"] == GOLDEN_FAMILIES[family].all_arguments(case)
        times = [tuple(step.tensors["timesteps"].tolist()) for step in run.steps]
        assert len(set(times)) == GOLDEN_FAMILIES[family].cases[case].num_steps
    assert set(load_golden(family)) == set(GOLDEN_FAMILIES[family].cases)


@pytest.mark.parametrize("family", ["z-image", "flux2-klein", "flux2-dev", "qwen-image", "krea2"])
def test_flow_models_are_noised_along_lines(family: str) -> None:
    for run in load_golden(family).values():
        for step in run.steps:
            tensors = step.tensors
            sigmas, latents, noise = (tensors[k] for k in ("sigmas", "latents", "noise"))
            line = (1 - sigmas) * latents + sigmas * noise
            assert torch.equal(tensors["noisy_latents"], line)
            assert torch.equal(tensors["target"], noise - latents)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    rows = torch.arange(24.0).reshape(2, 3, 4)
    steps = [
        GoldenStep({"latents": rows, "timesteps": torch.tensor([3, k])}, 0.5, None, {"w": 1.0 + k})
        for k in (1, 2)
    ]
    runs = {"plain": GoldenRun(steps, {"arguments": ["--seed=1"], "saved_lora_keys": ["w"]})}
    save_golden("family", runs, {"tiny_model": "sdxl"}, tmp_path)
    loaded = load_golden("family", tmp_path)["plain"]
    assert loaded.facts == {"arguments": ["--seed=1"], "saved_lora_keys": ["w"]}
    for step, original in zip(loaded.steps, steps, strict=True):
        assert step.loss == 0.5
        assert step.prior_loss is None
        assert step.gradient_norms == original.gradient_norms
        assert all(torch.equal(step.tensors[k], v) for k, v in original.tensors.items())
