import pytest
import torch

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder


@pytest.fixture
def encoder(toy_parts: Components) -> PromptEncoder:
    return PromptEncoder(toy_parts, {"text_encoder": AdaptedNetwork(toy_parts.text_encoder)})


def embed(encoder: PromptEncoder, prompt: str, clip_skip: int = 0) -> torch.Tensor:
    return encoder.encode(prompt, clip_skip)["hidden"]


def test_a_plain_prompt_is_embedded_as_by_the_encoder_alone(
    encoder: PromptEncoder, toy_parts: Components
) -> None:
    ids = toy_parts.tokenizer("a red car", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        reference = toy_parts.text_encoder(ids).last_hidden_state
    assert torch.equal(embed(encoder, "a red car"), reference)


def test_weight_one_changes_nothing_and_others_do(encoder: PromptEncoder) -> None:
    plain = embed(encoder, "a red car")
    assert torch.allclose(embed(encoder, "a (red:1.0) car"), plain, atol=1e-5)
    stronger, weaker = embed(encoder, "a (red:1.4) car"), embed(encoder, "a (red:0.4) car")
    assert (stronger - plain).abs().max() > 0.1
    assert (weaker - plain).abs().max() > 0.1


def test_escaped_brackets_reach_the_encoder_as_brackets(
    encoder: PromptEncoder, toy_parts: Components
) -> None:
    ids = toy_parts.tokenizer("a (red) car", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        reference = toy_parts.text_encoder(ids).last_hidden_state
    assert torch.equal(embed(encoder, r"a \(red\) car"), reference)
    weighted = embed(encoder, r"a (\(red\):1.4) car")
    assert (weighted - embed(encoder, "a ((red:1.4) car")).abs().max() > 0.01


def test_nothing_of_a_long_prompt_is_cut(encoder: PromptEncoder) -> None:
    long = "a red car on the beach beside a blue boat and a green house, " * 3
    window = embed(encoder, "a").shape[1]
    assert embed(encoder, long).shape[1] > window
    changed = embed(encoder, long + " in snow")
    assert not torch.equal(embed(encoder, long)[:, -window:], changed[:, -window:])


def test_a_pair_has_one_length(encoder: PromptEncoder) -> None:
    first, second = encoder.encode_pair("a red car on the beach " * 10, "a hat")
    long, short = first["hidden"], second["hidden"]
    assert long.shape == short.shape
    window = embed(encoder, "").shape[1]
    assert torch.equal(short[:, :window], embed(encoder, "a hat"))
    assert torch.equal(short[:, -window:], embed(encoder, ""))


def test_clip_skip_takes_an_earlier_layer(encoder: PromptEncoder) -> None:
    assert not torch.allclose(embed(encoder, "a car"), embed(encoder, "a car", clip_skip=1))
    with pytest.raises(ConfigError, match="clip_skip=12"):
        embed(encoder, "a car", clip_skip=12)
