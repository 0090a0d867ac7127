from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_ray.diffusion.components import load_pipeline
from dreambooth_ray.diffusion.sampling import Request, draw, grid, receipt
from dreambooth_ray.errors import ConfigError


def test_draw_gives_what_diffusers_gives(toy_model: Path) -> None:
    pipeline = load_pipeline(toy_model)
    request = Request("a red robot", seed=11, negative_prompt="a hat", num_inference_steps=3)
    (ours,) = draw(pipeline, [request])
    theirs = pipeline(
        "a red robot",
        negative_prompt="a hat",
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(11),
    ).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_requests_that_cannot_share_a_forward_keep_their_order(toy_model: Path) -> None:
    requests = [
        Request("a car", 1, num_inference_steps=2),
        Request("a dog", 2, num_inference_steps=2),
        Request("a car", 1, num_inference_steps=3),
        Request("a car", 1, num_inference_steps=3, guidance_scale=1.0),
    ]
    seen: list[int] = []
    together = draw(load_pipeline(toy_model), requests, on_batch=seen.append)
    assert seen == [2, 3, 4]
    for request, picture in zip(requests, together, strict=True):
        (alone,) = draw(load_pipeline(toy_model), [request])
        difference = np.abs(np.asarray(picture).astype(int) - np.asarray(alone).astype(int))
        assert difference.max() <= 1


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"guidance_scale": 0.5}, "guidance_scale=0.5"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_requests_are_refused(fields: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Request(**{"prompt": "x", "seed": 0, **fields})  # type: ignore[arg-type]


def test_a_receipt_is_read_back(tmp_path: Path, tile: Image.Image) -> None:
    tile.save(tmp_path / "a.png", pnginfo=receipt(Request("a dog, big", 5), model_hash="ff"))
    text = Image.open(tmp_path / "a.png").text  # type: ignore[attr-defined]
    assert (text["prompt"], text["seed"], text["model_hash"]) == ("a dog, big", "5", "ff")


def test_a_grid_holds_all_pictures(tile: Image.Image) -> None:
    assert grid([tile] * 5, columns=3, gap_px=2).size == (3 * 66 - 2, 2 * 66 - 2)
