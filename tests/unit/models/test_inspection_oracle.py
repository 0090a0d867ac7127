"""Random damage of a model directory: the inspection's word against the libraries' own loaders."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_directory import model_directory

NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
# A buffer of text encoders that were written long ago.
IGNORED = ("position_ids",)
TEXT = "a sks robot on the beach, (by) 7 painters"


def find_obstacle(directory: Path, expected_ids: list[int]) -> str:
    """Why the libraries' loaders do not give a model that samples; "" where they do."""
    parts: dict[str, Any] = {}
    try:
        for part, network_class in NETWORKS.items():
            parts[part], info = network_class.from_pretrained(
                directory, subfolder=part, use_safetensors=True, output_loading_info=True
            )
            names = (*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"])
            if differing := [name for name in names if not str(name).endswith(IGNORED)]:
                return f"{part}: {differing[0]}"
        parts["tokenizer"] = CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer")
        if parts["tokenizer"](TEXT).input_ids != expected_ids:
            return "the tokenizer splits otherwise"
        # As every loader of ours sets it: some tokenizers do not know of the encoder's positions.
        num_positions = parts["text_encoder"].config.max_position_embeddings
        tokenizer = parts["tokenizer"]
        tokenizer.model_max_length = min(tokenizer.model_max_length, num_positions)
        parts["scheduler"] = DDPMScheduler.from_pretrained(directory, subfolder="scheduler")
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline("a robot", num_inference_steps=1, height=64, width=64, output_type="np")
    except Exception as error:  # the oracle's answer, whatever it raises
        return f"{type(error).__name__}: {error}"
    return ""


def is_needed(path: Path) -> bool:
    """Whether a file is of a part: no loader of ours reads the index's list of parts."""
    return path.parent.name in (*NETWORKS, "tokenizer", "scheduler")


def change_key(directory: Path, data: st.DataObject) -> str:
    files = sorted(p for p in directory.rglob("*.json") if is_needed(p) and is_small(p))
    path = data.draw(st.sampled_from(files))
    content = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(k for k in content if k[0] != "_")))
    value = content[key]
    values: list[Any] = [None, "other", -1, [], "removed"]
    if type(value) is int:
        values += [value * 2, value + 1, value // 2]
    if type(value) is bool:
        values += [not value, not value]
    if isinstance(value, list):
        values += [value[:-1], value + value[-1:], value[::-1]]
    content[key] = data.draw(st.sampled_from(values))
    if content[key] == "removed":
        del content[key]
    path.unlink()
    path.write_text(json.dumps(content))
    return f"{path.parent.name}/{path.name} {key}={content.get(key, 'removed')!r}"


def is_small(path: Path) -> bool:
    return path.name not in ("tokenizer.json", "vocab.json")


def remove(directory: Path, data: st.DataObject) -> str:
    paths = sorted(p for p in directory.rglob("*") if p.is_dir() or is_needed(p))
    path = data.draw(st.sampled_from(paths))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"removed {path.relative_to(directory)}"


def cut_off(directory: Path, data: st.DataObject) -> str:
    path = data.draw(st.sampled_from(sorted(p for p in directory.rglob("*") if is_needed(p))))
    content = path.read_bytes()
    num_bytes = data.draw(st.integers(0, len(content) - 1))
    path.unlink()
    path.write_bytes(content[:num_bytes])
    return f"{path.relative_to(directory)} cut off after {num_bytes} bytes"


DAMAGES: tuple[Callable[[Path, st.DataObject], str], ...] = (change_key, remove, cut_off)


def compare(model: Path, expected_ids: list[int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "m"
        shutil.copytree(model, directory, copy_function=os.link)
        what = data.draw(st.sampled_from(DAMAGES))(directory, data)
        obstacle = find_obstacle(directory, expected_ids)
        try:
            model_directory(str(directory))
        except ConfigError as error:
            assert obstacle, f"{what}: refused, and the libraries load it: {error}"
            assert str(directory) in str(error), f"{what}: names no file: {error}"
            assert "\n" not in str(error)
        else:
            assert not obstacle, f"{what}: passed, and the libraries say {obstacle}"


@pytest.mark.parametrize(
    ("name", "num_examples"),
    [
        ("tiny_model", 12),
        pytest.param("tiny_model", 200, marks=pytest.mark.fault),
        pytest.param("sd15", 100, marks=pytest.mark.fault),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_inspection_says_what_the_libraries_say(
    request: pytest.FixtureRequest, name: str, num_examples: int
) -> None:
    model: Path = request.getfixturevalue(name)
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    expected_ids: list[int] = tokenizer(TEXT).input_ids
    torch.manual_seed(0)

    @settings(
        max_examples=num_examples, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def check(data: st.DataObject) -> None:
        compare(model, expected_ids, data)

    partial(check)()
