"""Stable Diffusion's own safety checker: CLIP ViT-L/14 against 17 concepts. Loads torch."""

import threading
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import logging
from PIL import Image
from transformers import CLIPImageProcessorPil

from dreambooth_ray.errors import ConfigError


class StableDiffusionChecker:
    """Says yes or no: its score is 0 or 1. On the GPU where the gateway sees one."""

    category, threshold = "sexual", 0.5

    def __init__(self, model: str | None) -> None:
        """model: a safety_checker directory, or a Stable Diffusion directory that has one.

        raises: ConfigError if there is none
        """
        checker_folder = Path(model or "").expanduser()
        if (checker_folder / "safety_checker").is_dir():
            checker_folder = checker_folder / "safety_checker"
        if model is None or not (checker_folder / "model.safetensors").is_file():
            raise ConfigError(
                f"safety.images_model={model!r} has no safety checker; give the directory "
                "safety_checker of a Stable Diffusion 1.x model, as safetensors"
            )
        # Its warning promises black images; here they are refused.
        logging.get_logger(StableDiffusionSafetyChecker.__module__).setLevel("ERROR")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        checker_on_cpu = StableDiffusionSafetyChecker.from_pretrained(
            checker_folder, use_safetensors=True
        )
        self._model = checker_on_cpu.to(self._device).eval()
        input_side_px = self._model.config.vision_config.image_size
        self._prepare = CLIPImageProcessorPil(
            size={"shortest_edge": input_side_px},
            crop_size={"height": input_side_px, "width": input_side_px},
        )
        self._lock = threading.Lock()

    def score(self, image: Image.Image) -> float:
        """1 if one of the concepts is in the image."""
        pixel_values = self._prepare(image.convert("RGB"), return_tensors="pt").pixel_values
        with self._lock:
            _, has_concept_flags = self._model(
                clip_input=pixel_values.to(self._device), images=[np.zeros((1, 1, 3), np.float32)]
            )
        return float(has_concept_flags[0])
