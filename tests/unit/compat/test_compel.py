from types import SimpleNamespace
from typing import Any

import torch

from dreambooth_ray.compat.compel import embed_fragments
from dreambooth_ray.models.components import Components
from tests.unit.compat.private_api import check_parameters, find_private


def test_compel_still_has_what_is_used_of_it() -> None:
    provider, encode = find_private(
        "compel", "compel.embeddings_provider", "EmbeddingsProvider",
        "EmbeddingsProvider._encode_token_ids_to_embeddings", user="compel.py",
    )  # fmt: skip
    check_parameters("compel", encode, ["token_ids", "attention_mask"], user="compel.py")
    check_parameters("compel", provider, ["truncate", "split_long_text_mode"], user="compel.py")


def test_every_window_goes_through_our_forward(toy_parts: Components) -> None:
    windows: list[Any] = []
    encoder = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, config=None)

    def forward(ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        windows.append(ids)
        return torch.as_tensor(toy_parts.text_encoder(ids).last_hidden_state.detach())

    window = int(toy_parts.tokenizer.model_max_length)
    prompt = " ".join(["red"] * (window + 1))
    embeddings = embed_fragments(toy_parts.tokenizer, encoder, forward, [(prompt, 1.0)])
    assert embeddings.shape[1] == 2 * window
    assert windows
    assert all(ids.shape[-1] == window for ids in windows)
