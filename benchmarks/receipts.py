"""Served images beside those that their receipts alone lead to."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dreambooth_ray.models.source import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.storage import paths


def check(
    answers: Path, bundles: dict[str, str], model: str, most: int | None = None
) -> dict[str, Any]:
    """Draw images alone from their receipts; how far the served ones are from those.

    most: how many of them; every one if None
    """
    torch.set_num_threads(1)
    engine, worst, wrong, total = Engine(model_directory(model)), 0, 0, 0
    for name, folder in bundles.items():
        engine.add_adapter(name, Path(folder) / paths.ADAPTER)
    for path in sorted(answers.glob("*.json"))[:most]:
        kept = json.loads(path.read_text())
        receipt, asked = kept["image"]["receipt"], kept["asked"]
        if any(receipt[k] != asked[k] for k in ("prompt", "seed", "guidance_scale")):
            wrong += 1
        alone = engine.draw(
            [
                Request(
                    receipt["prompt"],
                    receipt["seed"],
                    num_inference_steps=receipt["num_inference_steps"],
                    guidance_scale=receipt["guidance_scale"],
                    solver=receipt["solver"],
                    adapter=receipt["model"].partition("@")[0],
                )
            ]
        )[0].image
        served = Image.open(io.BytesIO(base64.b64decode(kept["image"]["b64_json"])))
        apart = np.abs(np.asarray(alone, dtype=int) - np.asarray(served, dtype=int)).max()
        worst, total = max(worst, int(apart)), total + 1
    return {"pictures": total, "worst_pixel_difference": worst, "receipts_of_others": wrong}
