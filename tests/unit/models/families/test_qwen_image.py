from pathlib import Path

import pytest
import torch

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.model_directory import check_resolution
from tests.families.tiny_models import build_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen-image", tmp_path_factory.mktemp("qwen") / "base")


@pytest.fixture(scope="module")
def parts(base: Path) -> Components:
    return load_components(base)


def test_sides_are_whole_tokens(base: Path) -> None:
    check_resolution(base, 80)
    with pytest.raises(ConfigError, match=r"train.resolution=72 is not a multiple of 16.*try 64"):
        check_resolution(base, 72)


def test_a_prompt_is_taken_whole_or_refused(parts: Components) -> None:
    encode = parts.functions.encode_prompt
    short, longer = (
        encode(parts, parts.text_forward_functions, "robot " * count)["hidden"]
        for count in (1, 130)
    )
    assert longer.shape[1] - short.shape[1] == 6 * 129
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes 1\d\d\d tokens"):
        encode(parts, parts.text_forward_functions, "robot " * 200)


def test_what_was_encoded_before_does_not_matter(parts: Components) -> None:
    """The encoder keeps positions of what it has read."""
    encode = parts.functions.encode_prompt
    first = encode(parts, parts.text_forward_functions, "a red robot")["hidden"]
    encode(parts, parts.text_forward_functions, "a cat by a house in the rain")
    assert torch.equal(encode(parts, parts.text_forward_functions, "a red robot")["hidden"], first)


def test_rows_of_several_lengths_are_padded_and_marked(parts: Components) -> None:
    encode = parts.functions.encode_prompt
    rows = [
        encode(parts, parts.text_forward_functions, text) for text in ("a robot", "a red robot")
    ]
    assert "is_token" not in parts.functions.join_rows(rows[:1] * 2).tensors
    joined = parts.functions.join_rows(rows)
    lengths = [row["hidden"].shape[1] for row in rows]
    assert joined["is_token"].sum(dim=1).tolist() == lengths
    assert not joined["hidden"][0, lengths[0] :].any()


def test_guidance_turns_tokens_and_leaves_their_lengths(parts: Components) -> None:
    conditional, delta = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    guided = parts.functions.guide(conditional, delta, 4.0, 0.5)
    before, after, plain = (
        torch.nn.functional.pixel_unshuffle(latents, 2).flatten(1)
        for latents in (conditional, guided, conditional + 3 * delta)
    )
    assert torch.allclose(after.norm(dim=0), before.norm(dim=0), rtol=1e-5)
    cosines = torch.cosine_similarity(after, plain, dim=0)
    assert torch.allclose(cosines, torch.ones_like(cosines), rtol=1e-5)
