import pytest
import torch

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.denoiser import AdaptedNetwork
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder


@pytest.fixture
def encoder(toy_parts: Components) -> PromptEncoder:
    return PromptEncoder(toy_parts.tokenizer, AdaptedNetwork(toy_parts.text_encoder))


def test_a_plain_prompt_is_embedded_as_by_the_encoder_alone(
    encoder: PromptEncoder, toy_parts: Components
) -> None:
    ids = toy_parts.tokenizer("a red car", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        reference = toy_parts.text_encoder(ids).last_hidden_state
    assert torch.equal(encoder.encode("a red car"), reference)


def test_weight_one_changes_nothing_and_others_do(encoder: PromptEncoder) -> None:
    plain = encoder.encode("a red car")
    assert torch.allclose(encoder.encode("a (red:1.0) car"), plain, atol=1e-5)
    stronger, weaker = encoder.encode("a (red:1.4) car"), encoder.encode("a (red:0.4) car")
    assert (stronger - plain).abs().max() > 0.1
    assert (weaker - plain).abs().max() > 0.1


def test_escaped_brackets_reach_the_encoder_as_brackets(
    encoder: PromptEncoder, toy_parts: Components
) -> None:
    ids = toy_parts.tokenizer("a (red) car", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        reference = toy_parts.text_encoder(ids).last_hidden_state
    assert torch.equal(encoder.encode(r"a \(red\) car"), reference)
    weighted = encoder.encode(r"a (\(red\):1.4) car")
    assert (weighted - encoder.encode("a ((red:1.4) car")).abs().max() > 0.01


def test_nothing_of_a_long_prompt_is_cut(encoder: PromptEncoder) -> None:
    long = "a red car on the beach beside a blue boat and a green house, " * 3
    window = encoder.encode("a").shape[1]
    assert encoder.encode(long).shape[1] > window
    changed = encoder.encode(long + " in snow")
    assert not torch.equal(encoder.encode(long)[:, -window:], changed[:, -window:])


def test_a_pair_has_one_length(encoder: PromptEncoder) -> None:
    long, short = encoder.encode_pair("a red car on the beach " * 10, "a hat")
    assert long.shape == short.shape
    window = encoder.encode("").shape[1]
    assert torch.equal(short[:, :window], encoder.encode("a hat"))
    assert torch.equal(short[:, -window:], encoder.encode(""))


def test_clip_skip_takes_an_earlier_layer(encoder: PromptEncoder) -> None:
    assert not torch.allclose(encoder.encode("a car"), encoder.encode("a car", clip_skip=1))
    with pytest.raises(ConfigError, match="clip_skip=12"):
        encoder.encode("a car", clip_skip=12)
