"""Training steps as diffusers' own scripts made them: read from and written to `golden/`.

A family has a safetensors file with the tensors and a JSON file with everything else. Tensors are
stored row by row, and equal rows once.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
# Of a network's output or of all its gradients: what one kind of processor rounds otherwise than
# another. Up to 1.3e-5 was seen between AMD's and Intel's.
ROUNDING = 3e-5


@dataclass
class GoldenStep:
    """One step of a script, up to its backward pass.

    tensors: rows of the instance first, then those of the class
        pixel_values: (B, 3, h, w) in [-1, 1]
        raw_latents: as the autoencoder gives them, and posterior_mean and posterior_std of it
        latents: scaled, shifted, normalised as the family does, and packed into channels if it does
        noise, noisy_latents: like latents. target, prediction: what the loss compares
        timesteps: (B,), of the scheduler. sigmas, weighting: (B, 1, 1, 1), of flow models
        input.NAME: what the denoiser's forward got by the name NAME; input.NAME.K of a list
        output: what the denoiser gave, before sign and unpacking
        gradient.NAME: of some of the weights
    gradient_norms: of all trained weights, by "part.name"; before clipping
    """

    tensors: dict[str, Tensor]
    loss: float
    prior_loss: float | None = None
    gradient_norms: dict[str, float] = field(default_factory=dict)


@dataclass
class GoldenRun:
    """The steps of one case. facts: what golden_cases and the script say of it"""

    steps: list[GoldenStep]
    facts: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The trained weights, "part.name"."""
        return list(self.steps[0].gradient_norms)


def golden_lora_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """What every recorded run had for a LoRA weight; name: "part.module.lora_A" or `lora_B`.

    The scripts begin with lora_B = 0, and with it no gradient reaches lora_A.
    """
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(0.2 * generator.standard_normal(shape, np.float32))


def fill_lora(part: str, network: nn.Module) -> None:
    """Give an adapted network its golden weights, under peft's names."""
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            stem = name.removesuffix(".default.weight")
            parameter.data.copy_(golden_lora_weight(f"{part}.{stem}", tuple(parameter.shape)))


def load_golden(family: str, folder: Path = GOLDEN) -> dict[str, GoldenRun]:
    """All cases of a family, by name."""
    record = json.loads((folder / f"{family}.json").read_text())
    stored = load_file(folder / f"{family}.safetensors")
    runs = {}
    for case, facts in record["cases"].items():
        names = record["names"][facts.pop("gradient_names")]
        facts["saved_lora_keys"] = record["names"][facts["saved_lora_keys"]]
        steps = []
        for step in facts.pop("steps"):
            tensors = {name: _join(key, stored) for name, key in step["tensors"].items()}
            norms = dict(zip(names, tensors.pop("gradient_norms").tolist(), strict=True))
            steps.append(GoldenStep(tensors, step["loss"], step["prior_loss"], norms))
        runs[case] = GoldenRun(steps, facts)
    return runs


def save_golden(
    family: str, runs: Mapping[str, GoldenRun], facts: Mapping[str, Any], folder: Path = GOLDEN
) -> None:
    """Write both files; facts: of the whole recording"""
    stored: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    cases: dict[str, Any] = {}
    lists: list[list[str]] = []  # of names, equal ones once
    for case, run in runs.items():
        names = run.names
        steps = []
        for number, step in enumerate(run.steps):
            norms = torch.tensor([step.gradient_norms[name] for name in names])
            tensors = {
                name: _split(f"{case}.{number}.{name}", tensor, stored, keys)
                for name, tensor in (step.tensors | {"gradient_norms": norms}).items()
            }
            steps.append({"loss": step.loss, "prior_loss": step.prior_loss, "tensors": tensors})
        chosen = {"gradient_names": names, "saved_lora_keys": run.facts["saved_lora_keys"]}
        lists += [value for value in chosen.values() if value not in lists]
        numbers = {key: lists.index(value) for key, value in chosen.items()}
        cases[case] = run.facts | numbers | {"steps": steps}
    folder.mkdir(exist_ok=True)
    save_file(stored, folder / f"{family}.safetensors")
    record = {**facts, "names": lists, "cases": cases}
    (folder / f"{family}.json").write_text(json.dumps(record) + "\n")


def _join(key: str | list[str], stored: Mapping[str, Tensor]) -> Tensor:
    return stored[key] if isinstance(key, str) else torch.stack([stored[row] for row in key])


def _split(
    key: str, tensor: Tensor, stored: dict[str, Tensor], keys: dict[str, str]
) -> str | list[str]:
    """Store a tensor, row by row if it has many axes; returns its keys. keys: by digest"""
    if tensor.ndim >= 3:
        return [_store_row(f"{key}.{k}", row, stored, keys) for k, row in enumerate(tensor)]
    return _store_row(key, tensor, stored, keys)


def _store_row(key: str, row: Tensor, stored: dict[str, Tensor], keys: dict[str, str]) -> str:
    content = row.detach().contiguous().clone()
    head = f"{content.dtype}{tuple(content.shape)}".encode()
    digest = hashlib.sha256(head + content.numpy().tobytes()).hexdigest()
    known_key = keys.setdefault(digest, key)
    stored.setdefault(known_key, content)
    return known_key
