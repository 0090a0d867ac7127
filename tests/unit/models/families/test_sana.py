from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.families.sana_checks import list_transformer_shapes
from dreambooth_ray.models.families.sana_functions import INSTRUCTION
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import model_outline
from dreambooth_ray.training.caption_embeddings import encode_captions
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny, change_json

TRANSFORMER = "transformer/config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("sana", tmp_path_factory.mktemp("sana") / "base")


@pytest.fixture(scope="module")
def parts(base: Path) -> Components:
    return load_components(base)


def encode_as_pipeline(parts: Components, prompt: str, instruction: list[str] | None) -> Any:
    pipeline = SanaPipeline(**parts.tokenizers, **parts.networks, scheduler=parts.schedule)
    with torch.no_grad():
        return pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, complex_human_instruction=instruction
        )[:2]


def test_a_prompt_goes_behind_an_instruction_and_a_negative_one_goes_without(
    parts: Components,
) -> None:
    functions, told = parts.functions, "A Robot on the Beach "
    for encode, lines in (
        (functions.encode_prompt, INSTRUCTION.split("\n")),
        (functions.encode_negative_prompt, None),
    ):
        with torch.no_grad():
            row = encode(parts, parts.text_forward_functions, told)
        hidden, mask = encode_as_pipeline(parts, told, lines)
        assert torch.allclose(row["hidden"], hidden, atol=1e-5)
        assert torch.equal(row["mask"], mask)
        assert row["hidden"].shape == (1, 300, 16)


def test_a_dropped_caption_is_what_guidance_compares_with(parts: Components) -> None:
    rows = encode_captions(parts, ["", "a robot"])
    with torch.no_grad():
        empty = parts.functions.encode_negative_prompt(parts, parts.text_forward_functions, "")
    assert torch.equal(rows["hidden"][:1], empty["hidden"])
    assert int(rows["mask"][1].sum()) > int(rows["mask"][0].sum()) == 1


def test_a_prompt_is_taken_whole_or_refused(parts: Components) -> None:
    functions = parts.functions
    # Of 300 tokens of this tokenizer, a letter each, the beginning and the instruction's end go.
    functions.encode_prompt(parts, parts.text_forward_functions, "x" * 298)
    with pytest.raises(ConfigError, match=r"the prompt 'xxx.* has 1 tokens more .* 300; shorten"):
        functions.encode_prompt(parts, parts.text_forward_functions, "x" * 299)
    functions.encode_negative_prompt(parts, parts.text_forward_functions, "x" * 299)
    with pytest.raises(ConfigError, match="has 1 tokens more"):
        functions.encode_negative_prompt(parts, parts.text_forward_functions, "x" * 300)


@pytest.mark.parametrize("name", ["sana-1600m", "sana-600m", "sana-1.5-4.8b"])
def test_shapes_are_those_of_the_published_networks(name: str) -> None:
    model = PUBLISHED_MODELS[name]
    network = model.build_on_meta("transformer")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list_transformer_shapes(model.part_config("transformer")) == shapes


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("model_index.json", {"_class_name": "SanaSprintPipeline"},
         "says SanaSprintPipeline, of Sana Sprint, which is distilled; take Sana itself"),
        ("model_index.json", {"_class_name": "SanaControlNetPipeline"}, "a Sana with a ControlNet"),
        (TRANSFORMER, {"guidance_embeds": True}, "guidance_embeds=true is of Sana Sprint"),
        (TRANSFORMER, {"sample_size": 128}, "sample_size=128 is of Sana 4K, .*in tiles"),
        (TRANSFORMER, {"sample_size": 8}, "sample_size=8 must be one of"),
        (TRANSFORMER, {"qk_norm": "layer_norm"}, "qk_norm='layer_norm' must be null or"),
        (TRANSFORMER, {"mlp_ratio": "2.5"}, "mlp_ratio='2.5' must be a number above 0"),
        (TRANSFORMER, {"out_channels": 8}, "out_channels=8 must be in_channels, 4"),
        (TRANSFORMER, {"patch_size": 2}, "patch_size=2 must be one latent, 1"),
        (TRANSFORMER, {"cross_attention_dim": 16}, "must be the width of all heads, 32"),
        (TRANSFORMER, {"num_layers": 3}, "transformer_blocks.2.scale_shift_table is"),
        ("text_encoder/config.json", {"num_attention_heads": 3}, "does not divide hidden_size=16"),
        ("vae/config.json", {"upsample_block_type": "pixel_shuffle"}, "take that of Sana"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "use_flow_sigmas=False"),
        ("scheduler/scheduler_config.json", {"flow_shift": 0}, "flow_shift=0"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "'epsilon'"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas=True"),
    ],
)  # fmt: skip
def test_another_model_is_refused(
    base: Path, file: str, keys: dict[str, Any], message: str
) -> None:
    before = (base / file).read_text()
    change_json(base / file, keys)
    try:
        with pytest.raises(ConfigError, match=message):
            model_outline(str(base))
    finally:
        (base / file).write_text(before)
    model_outline(str(base))


def test_its_scheduler_decides_on_the_solver(base: Path, tmp_path: Path) -> None:
    other = build_tiny("sana-flow-match", tmp_path / "other")
    solvers = [find_family(d).sampling_defaults["solver"] for d in (base, other)]
    assert solvers == ["dpmpp_2m", "euler"]
    assert find_family(base).default_side(base) == 32 * 8
    assert find_family(base).size_multiple(base) == 32
