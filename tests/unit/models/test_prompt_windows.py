"""Training sees captions as the engine sees prompts, whatever their length."""

import pytest
import torch

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.prompt_windows import embed_windows, tokenize_windows
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder

LONG = "a red car on the beach beside a blue boat and a green house, "


def embed(parts: Components, texts: list[str]) -> torch.Tensor:
    ids = tokenize_windows(parts.tokenizer, texts)

    def encode(rows: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = parts.text_encoder(rows).last_hidden_state
        return hidden

    return embed_windows(encode, ids, parts.tokenizer.eos_token_id)


@pytest.mark.parametrize("num_repeats", [1, 3, 7])
def test_a_caption_is_embedded_as_the_engine_embeds_a_prompt(
    toy_parts: Components, num_repeats: int
) -> None:
    encoder = PromptEncoder(toy_parts, {"text_encoder": AdaptedNetwork(toy_parts.text_encoder)})
    text = LONG * num_repeats
    with torch.no_grad():
        embedded = embed(toy_parts, [text])
    prompt = encoder.encode(text)["hidden"]
    assert embedded.shape == prompt.shape
    assert torch.allclose(embedded, prompt, atol=1e-5)


def test_texts_of_several_lengths_are_embedded_as_pairs_are(toy_parts: Components) -> None:
    encoder = PromptEncoder(toy_parts, {"text_encoder": AdaptedNetwork(toy_parts.text_encoder)})
    with torch.no_grad():
        embedded = embed(toy_parts, [LONG * 3, "a hat", ""])
    long, short = encoder.encode_pair(LONG * 3, "a hat")
    _, empty = encoder.encode_pair(LONG * 3, "")
    for row, expected in zip(embedded, (long, short, empty), strict=True):
        assert torch.allclose(row, expected["hidden"][0], atol=1e-5)


def test_short_texts_are_what_the_tokenizer_makes_of_them(toy_parts: Components) -> None:
    texts = ["a red car", "a hat", ""]
    ids = tokenize_windows(toy_parts.tokenizer, texts)
    padded = toy_parts.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(ids, padded.input_ids)
    with torch.no_grad():
        reference = toy_parts.text_encoder(ids).last_hidden_state
    assert torch.equal(embed(toy_parts, texts), reference)


def test_gradients_reach_every_window(toy_parts: Components) -> None:
    words = toy_parts.text_encoder.get_input_embeddings().weight
    embed(toy_parts, [LONG * 3 + " hat"]).square().sum().backward()
    assert words.grad is not None
    for word in ("red", "hat"):
        (token,) = toy_parts.tokenizer(word, add_special_tokens=False).input_ids
        assert words.grad[token].abs().max() > 0
