"""The batched forward gives what diffusers' own gives, number for number."""

import pytest
import torch
from torch import Tensor, nn

from dreambooth_ray.toyworld.captioned_images import tokenize_captions
from dreambooth_ray.toyworld.flow_dataset import caption_format
from dreambooth_ray.toyworld.flow_forward import encode_tokens, predict_velocity
from dreambooth_ray.toyworld.flow_model import (
    assemble_pipeline,
    load_flow_vae,
    new_flow_text_encoder,
    new_transformer,
)
from dreambooth_ray.toyworld.flow_tokenizer import new_flow_tokenizer

PROMPTS = ["a photo of a sks red robot wearing a party hat on a wooden table", "", "a fish"]


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    transformer = new_transformer(8).eval()
    for parameter in transformer.parameters():
        if not parameter.any():  # gates that begin at zero would hide the blocks
            nn.init.normal_(parameter, std=0.2)
    return transformer, new_flow_text_encoder(new_flow_tokenizer()).eval()


def tokenize_prompts() -> tuple[Tensor, Tensor]:
    form = caption_format(new_flow_tokenizer())
    token_ids = torch.from_numpy(tokenize_captions(PROMPTS, form)).long()
    return token_ids, token_ids != form.pad_id


@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_encodes_them(
    parts: tuple[nn.Module, nn.Module],
) -> None:
    transformer, text_encoder = parts
    pipeline = assemble_pipeline(transformer, text_encoder, new_flow_tokenizer(), load_flow_vae())
    expected, _ = pipeline.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    token_ids, is_token = tokenize_prompts()
    hidden = encode_tokens(text_encoder, token_ids)
    for row, mask, published in zip(hidden, is_token, expected, strict=True):
        assert torch.allclose(row[mask], published, atol=1e-6)


def test_velocities_and_gradients_are_those_of_the_published_forward(
    parts: tuple[nn.Module, nn.Module],
) -> None:
    transformer, text_encoder = parts
    token_ids, is_token = tokenize_prompts()
    hidden = encode_tokens(text_encoder, token_ids).detach()
    latents, time = torch.randn(3, 8, 16, 16), torch.tensor([0.02, 0.5, 0.97])
    captions = [row[mask] for row, mask in zip(hidden, is_token, strict=True)]
    published = torch.stack(
        transformer(list(latents[:, :, None]), time, captions, return_dict=False)[0]
    )[:, :, 0]
    batched = predict_velocity(transformer, latents, time, hidden, is_token)
    assert torch.allclose(batched, published, atol=1e-5)
    weights = [p for n, p in transformer.named_parameters() if n != "x_pad_token"]
    for ours, theirs in zip(
        torch.autograd.grad(batched.square().mean(), weights),
        torch.autograd.grad(published.square().mean(), weights),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-8)


def test_lengths_that_the_published_forward_would_pad_are_refused(
    parts: tuple[nn.Module, nn.Module],
) -> None:
    transformer, _ = parts
    with pytest.raises(ValueError, match="31 caption tokens and 64 image tokens"):
        predict_velocity(
            transformer,
            torch.zeros(1, 8, 16, 16),
            torch.zeros(1),
            torch.zeros(1, 31, 128),
            torch.ones(1, 31, dtype=torch.bool),
        )
