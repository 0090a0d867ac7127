"""A small network that predicts a toy-world image's attributes and identity."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth_ray.errors import DataError
from dreambooth_ray.toyworld.attributes import (
    BACKGROUND_NAMES,
    CLASSES,
    COLOUR_NAMES,
    PATTERNS,
)
from dreambooth_ray.toyworld.world_images import HEADS, SIZE_PX, to_tensor

IDENTITY_SIZE = 64
NAMES: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    "colour": COLOUR_NAMES,
    "pattern": PATTERNS,
    "background": BACKGROUND_NAMES,
    "hat": ("no hat", "hat"),
}


def _conv_block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU()
    )


class _EvaluatorResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = _conv_block(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class Evaluator(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] to attribute logits and a unit identity vector."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv_block(3, 32, 2),
            _EvaluatorResidualBlock(32),
            _conv_block(32, 64, 2),
            _EvaluatorResidualBlock(64),
            _conv_block(64, 128, 2),
            _EvaluatorResidualBlock(128),
            _EvaluatorResidualBlock(128),
        )
        self.heads = nn.Linear(256, sum(HEADS.values()))
        self.identity = nn.Sequential(nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, IDENTITY_SIZE))

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns one (B, choices) logit tensor per entry of HEADS, and (B, 64) unit vectors."""
        x = self.body(pixels)
        pooled_features = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        logits = self.heads(pooled_features).split(list(HEADS.values()), dim=1)
        return list(logits), F.normalize(self.identity(pooled_features), dim=1)


@dataclass(frozen=True)
class PredictedAttributes:
    """The evaluator's predictions for B images: names per attribute, identity (B, 64) unit."""

    attributes: dict[str, list[str]]
    identity: Tensor

    def accuracy(self, attribute: str, truth: list[str]) -> float:
        """Share of images whose `attribute` is predicted as in `truth`, 0 to 1."""
        predicted_names = self.attributes[attribute]
        return sum(a == b for a, b in zip(predicted_names, truth, strict=True)) / len(truth)


def load_evaluator(path: Path | None = None) -> Evaluator:
    """The shipped evaluator, or one from a safetensors file."""
    path = path or Path(str(files("dreambooth_ray.toyworld") / "weights" / "evaluator.safetensors"))
    if not path.exists():
        raise DataError(
            f"evaluator weights not found at {path}; reinstall the package, or make them with "
            "`dreambooth toyworld pretrain`"
        )
    network = Evaluator()
    network.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return network.eval()


@torch.no_grad()
def predict_logits(network: Evaluator, images: list[Image.Image]) -> tuple[list[Tensor], Tensor]:
    """The network's outputs for images of any size; each is reduced to 64 px first."""
    if not images:
        raise DataError("no images to read; give at least one")
    pixel_arrays = [
        np.asarray(p.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS))
        for p in images
    ]
    logits, identity = network(to_tensor(np.stack(pixel_arrays)))
    return logits, identity


def predict_attributes(network: Evaluator, images: list[Image.Image]) -> PredictedAttributes:
    """Read images of any size."""
    logits, identity = predict_logits(network, images)
    predicted_attributes = {
        head: [NAMES[head][i] for i in part.argmax(dim=1).tolist()]
        for head, part in zip(HEADS, logits, strict=True)
    }
    return PredictedAttributes(predicted_attributes, identity)


def fidelity(generated: Tensor, references: Tensor) -> float:
    """Mean cosine between every generated image and every reference; both (., 64) unit vectors."""
    return float((generated @ references.T).mean())
