from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.sampling.request import Request, png_receipt

IMAGE = Image.new("RGB", (64, 64))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": "x" * 100_000}, "prompt has 100000 characters"),
        ({"negative_prompt": "x" * 100_000}, "negative_prompt has"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"guidance_scale": -1}, "guidance_scale=-1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"solver": "magic"}, "solver='magic'.*dpmpp_2m"),
        ({"eta": 0.5, "solver": "euler"}, "eta=0.5"),
        ({"karras": True}, "karras=True"),
        ({"width_px": 60, "height_px": 64}, "width_px=60"),
        ({"width_px": 64}, "height_px"),
        ({"guidance_rescale": 2.0}, "guidance_rescale=2.0"),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval"),
        ({"guidance_every": 0}, "guidance_every=0"),
        ({"cache_every": 0}, "cache_every=0"),
        ({"mask": IMAGE}, "mask is given without an image"),
        ({"image": IMAGE, "mask": Image.new("L", (32, 64))}, "mask is 32x64"),
        ({"image": IMAGE, "strength": 0.0}, "strength=0"),
        ({"strength": 1.5}, "strength=1.5"),
        ({"clip_skip": -1}, "clip_skip=-1"),
    ],
)
def test_bad_requests_are_refused_by_name(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Request(**{"prompt": "x", "seed": 0, **fields})


def test_a_receipt_is_read_back(tmp_path: Path, tile: Image.Image) -> None:
    tile.save(tmp_path / "a.png", pnginfo=png_receipt(Request("a dog, big", 5), model_hash="ff"))
    text = Image.open(tmp_path / "a.png").text  # type: ignore[attr-defined]
    assert (text["prompt"], text["seed"], text["model_hash"]) == ("a dog, big", "5", "ff")
    assert (text["solver"], text["guidance_scale"]) == ("ddim", "3.0")
