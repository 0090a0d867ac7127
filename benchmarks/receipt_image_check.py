"""Compares served images with those sampled again from their receipts."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.storage import paths
from serve.api_messages import Receipt


def compare_served_with_resampled_images(
    answers: Path, bundles: dict[str, str], model: str, max_images: int | None = None
) -> dict[str, Any]:
    """Sample images alone from their receipts; how far the served ones are from those.

    max_images: how many of them; every one if None
    """
    torch.set_num_threads(1)
    engine, worst_pixel_difference, num_mismatched_receipts, num_images = (
        Engine(model_directory(model)),
        0,
        0,
        0,
    )
    for adapter_name, bundle_folder in bundles.items():
        engine.add_adapter(adapter_name, Path(bundle_folder) / paths.ADAPTER)
    for answer_file in sorted(answers.glob("*.json"))[:max_images]:
        answer_record = json.loads(answer_file.read_text())
        image_receipt, request_body = answer_record["image"]["receipt"], answer_record["asked"]
        if any(image_receipt[k] != request_body[k] for k in ("prompt", "seed", "guidance_scale")):
            num_mismatched_receipts += 1
        reference_image = engine.sample(
            [
                Request(
                    image_receipt["prompt"],
                    image_receipt["seed"],
                    params=Receipt.model_validate(image_receipt).sampling_params,
                    adapter=image_receipt["model"].partition("@")[0],
                )
            ]
        )[0].image
        served_image = Image.open(io.BytesIO(base64.b64decode(answer_record["image"]["b64_json"])))
        pixel_difference = np.abs(
            np.asarray(reference_image, dtype=int) - np.asarray(served_image, dtype=int)
        ).max()
        worst_pixel_difference, num_images = (
            max(worst_pixel_difference, int(pixel_difference)),
            num_images + 1,
        )
    return {
        "pictures": num_images,
        "worst_pixel_difference": worst_pixel_difference,
        "receipts_of_others": num_mismatched_receipts,
    }
