"""What of Stable Diffusion XL is its own: two encoders, a pooled prompt, sizes, what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compel import CompelForSDXL
from torch import Tensor

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components, load_pipeline
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder
from dreambooth_ray.training.caption_embeddings import embed_caption_tokens
from tests.families.tiny_models import build_tiny, change_json

LONG = "a red robot on the beach beside a blue boat and a green house under the sun " * 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("sdxl", tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="module")
def parts(directory: Path) -> Components:
    return load_components(directory)


@pytest.fixture(scope="module")
def encoder(parts: Components) -> PromptEncoder:
    return PromptEncoder(parts, {n: AdaptedNetwork(e) for n, e in parts.text_encoders.items()})


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.filterwarnings("ignore")
def test_weights_are_those_of_compel_and_pooling_knows_none(
    directory: Path, encoder: PromptEncoder
) -> None:
    pipeline = load_pipeline(directory)
    row = encoder.encode("a (red:1.4) car, [blue]")
    with torch.no_grad():
        # It writes weights otherwise, and pools them as text.
        weighted = CompelForSDXL(pipeline)("a (red)1.4 car, (blue)0.9090909090909091")
        pooled = pipeline.encode_prompt("a red car, blue")[2]
    assert differ(row["hidden"], weighted.embeds) <= 1e-4
    assert differ(row["pooled"], pooled) <= 1e-5
    assert differ(row["hidden"], encoder.encode("a red car, blue")["hidden"]) > 1e-2


def test_a_long_prompt_is_taken_whole_and_pooled_by_its_first_window(
    encoder: PromptEncoder,
) -> None:
    row, words = encoder.encode(LONG), LONG.split()
    window = encoder.encode("")["hidden"].shape[1]
    assert row["hidden"].shape[1] > window
    prefixes = [encoder.encode(" ".join(words[:n])) for n in range(1, len(words))]
    (*_, longest) = (prefix for prefix in prefixes if prefix["hidden"].shape[1] == window)
    assert differ(row["hidden"][:, :window], longest["hidden"]) <= 1e-5
    assert differ(row["pooled"], longest["pooled"]) <= 1e-5


@pytest.mark.parametrize("captions", [["a robot", "a red hat"], ["a robot", LONG]])
def test_captions_are_embedded_as_prompts_are(
    parts: Components, encoder: PromptEncoder, captions: list[str]
) -> None:
    rows = embed_caption_tokens(parts, parts.functions.text_training.tokenize(parts, captions))
    assert len(rows) == 2
    for row, caption in zip(
        (rows.select(slice(0, 1)), rows.select(slice(1, 2))), captions, strict=True
    ):
        prompt = encoder.encode(caption)
        length = prompt["hidden"].shape[1]
        assert differ(row["hidden"][:, :length], prompt["hidden"]) <= 1e-5
        assert differ(row["pooled"], prompt["pooled"]) <= 1e-5


def test_no_negative_prompt_is_zeros_and_a_space_is_an_empty_text(
    directory: Path, tmp_path: Path, encoder: PromptEncoder
) -> None:
    first, second = encoder.encode_pair(LONG, "")
    assert first["hidden"].shape == second["hidden"].shape
    assert not second["hidden"].any()
    assert not second["pooled"].any()
    _, empty = encoder.encode_pair("a robot", " ")
    assert torch.equal(empty["hidden"], encoder.encode("")["hidden"])
    shutil.copytree(directory, tmp_path / "m")
    change_json(tmp_path / "m/model_index.json", {"force_zeros_for_empty_prompt": False})
    parts = load_components(tmp_path / "m")
    adapted = {n: AdaptedNetwork(e) for n, e in parts.text_encoders.items()}
    _, unforced = PromptEncoder(parts, adapted).encode_pair("a robot", "")
    assert differ(unforced["hidden"], empty["hidden"]) <= 1e-6


def test_clip_skip_leaves_out_further_layers_of_both_encoders(
    parts: Components, encoder: PromptEncoder
) -> None:
    plain, skipped = encoder.encode("a car"), encoder.encode("a car", clip_skip=1)
    width = parts.text_encoders["text_encoder"].config.hidden_size
    for half in (slice(0, width), slice(width, None)):
        assert differ(plain["hidden"][..., half], skipped["hidden"][..., half]) > 1e-2
    assert torch.equal(plain["pooled"], skipped["pooled"])
    with pytest.raises(ConfigError, match="clip_skip=2 leaves nothing"):
        encoder.encode("a car", clip_skip=2)


def test_the_denoiser_is_told_where_an_image_was_cut(parts: Components) -> None:
    frames = torch.tensor([ImageFrame(480, 640, 0, 43, 512, 512)])
    row = parts.functions.example_conditioning(parts, 1, 64).select(slice(0, 1))
    time_ids = parts.functions.add_frames(row, frames)["time_ids"]
    assert time_ids.tolist() == [[480, 640, 0, 43, 512, 512]]
    # In half they would be other sizes.
    assert time_ids.dtype == torch.int64


@pytest.mark.parametrize("method", ["full", "lora"])
def test_layers_that_nothing_comes_from_are_not_trained(directory: Path, method: str) -> None:
    parts = load_components(directory)
    overrides = [f"train.method={method}", "train.text_encoder=true", "train.resolution=64"]
    apply_train_method(parse_config("subject: {photos: p, class_noun: x}", "x", overrides), parts)
    training = parts.functions.text_training
    tokens = training.tokenize(parts, ["a robot"])
    functions = training.text_functions(parts.text_encoders)
    row = training.make_token_encoder(parts, functions)(tokens)
    sum(tensor.square().sum() for tensor in row.values).backward()  # type: ignore[union-attr]
    for encoder in parts.text_encoders.values():
        trained = {n: w for n, w in encoder.named_parameters() if w.requires_grad}
        assert trained
        assert [n for n, w in trained.items() if w.grad is None] == []


def _name_refiner(folder: Path) -> None:
    keys = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    change_json(folder / "model_index.json", keys)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a refiner": (_name_refiner, "refiner"),
    "another second encoder": (
        lambda m: change_json(m / "text_encoder_2/config.json", {"projection_dim": 8}),
        r"gives 8 beside 6 sizes",
    ),
    "no sizes": (
        lambda m: change_json(m / "unet/config.json", {"addition_embed_type": None}),
        "told of no sizes",
    ),
    "Playground's latents": (
        lambda m: change_json(m / "vae/config.json", {"latents_mean": [0.0] * 4}),
        "latents_mean",
    ),
    "Playground's scheduler": (
        lambda m: change_json(
            m / "scheduler/scheduler_config.json",
            {"_class_name": "EDMDPMSolverMultistepScheduler"},
        ),
        "EDMDPMSolver",
    ),
    "the second tokenizer's merges": (
        lambda m: (m / "tokenizer_2/merges.txt").unlink(),
        r"tokenizer_2 has neither",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_base_model_is_refused_by_name(
    directory: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(directory, tmp_path / "m")
    change, said = REFUSALS[name]
    change(tmp_path / "m")
    with pytest.raises(ConfigError, match=said) as refused:
        model_directory(str(tmp_path / "m"))
    assert "\n" not in str(refused.value)


def test_a_distilled_model_is_sampled_and_not_trained(directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(directory, folder)
    config = parse_config("subject: {photos: p, class_noun: x}", "x", [f"model.uri={folder}"])
    check_training_settings(config, model_directory(str(folder)))
    change_json(folder / "scheduler/scheduler_config.json", {"timestep_spacing": "trailing"})
    with pytest.raises(ConfigError, match=r"model\.uri=.*distilled"):
        check_training_settings(config, model_directory(str(folder)))
