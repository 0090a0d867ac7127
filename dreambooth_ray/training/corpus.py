"""What training sees, prepared once: cached latents and token ids, addressed by step.

Legend: N pictures, F orientations (as is, mirrored), C latent channels, h, w latent
sides, B batch of one worker (photographs first, then class images), L tokens.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.pairs import batch_positions, shuffled_index
from dreambooth_ray.data.photographs import square
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.diffusion import noise
from dreambooth_ray.diffusion.components import Components
from dreambooth_ray.diffusion.methods import is_trained
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store

_PHOTOGRAPHS, _PRIORS = 21, 22


@dataclass
class Batch:
    """One worker's share of a step. Not frozen: Lightning moves it to the device in place.

    latents, noise: (B, C, h, w) float32; timesteps: (B,) int64; input_ids: (B, L) int64;
    is_prior: (B,) bool; step counts from 0; hidden: (B, L, D) text embeddings, where the text
    encoder is frozen, else None
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    input_ids: Tensor
    is_prior: Tensor
    step: int
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Pool:
    """Cached pictures of one kind, each with its caption.

    latents: (N, F, 2, C, h, w), scaled mean and std; input_ids: (N, L) int64;
    hidden: K different captions' (K, L, D) text embeddings and, for each picture, which of
    them is its own: (N,) int64; None where the text encoder is trained
    """

    latents: Tensor
    input_ids: Tensor
    hidden: tuple[Tensor, Tensor] | None = None

    def hidden_of(self, index: int) -> Tensor | None:
        """(L, D) text embedding of a picture's caption, where cached."""
        return None if self.hidden is None else self.hidden[0][self.hidden[1][index]]


def read_priors(store: Store, count: int, side_px: int) -> list[Image.Image]:
    """The first `count` class images of a set."""
    pictures = []
    for index in range(count):
        with Image.open(io.BytesIO(store.read(layout.prior_image(index)))) as picture:
            pictures.append(square(picture.convert("RGB"), side_px))
    return pictures


def make_pool(
    parts: Components, pictures: list[Image.Image], captions: list[str], flip: bool
) -> Pool:
    """Encode pictures through the frozen VAE, each once for each orientation."""
    rows = []
    with torch.inference_mode():
        for picture in pictures:
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
            views = torch.stack([pixels, pixels.flip(2)] if flip else [pixels])
            posterior = parts.vae.encode(views.to(parts.vae.device)).latent_dist
            pair = torch.stack([posterior.mean, posterior.std], dim=1)
            rows.append((pair * parts.vae.config.scaling_factor).cpu())
    # Cloned outside inference mode, so that autograd may use it.
    ids = tokenize(parts.tokenizer, captions)
    hidden = None if is_trained(parts.text_encoder) else embed(parts.text_encoder, ids)
    return Pool(torch.stack(rows).clone(), ids, hidden)


@torch.no_grad()
def embed(encoder: CLIPTextModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Each different row of (N, L) ids through a frozen encoder once: Pool.hidden.

    One by one, so that a caption's embedding does not depend on its neighbours.
    """
    different, place = torch.unique(ids, dim=0, return_inverse=True)
    rows = [encoder(row[None].to(encoder.device)).last_hidden_state.cpu() for row in different]
    return torch.cat(rows), place


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(len(captions), L) int64, padded to the encoder's window."""
    ids: Tensor = tokenizer(
        captions,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    return ids


def _stacked(rows: list[Tensor | None]) -> Tensor | None:
    known = [row for row in rows if row is not None]
    return torch.stack(known) if known else None


class Corpus(IterableDataset[Batch]):
    """Yields the batches of steps start..total-1 for one worker."""

    def __init__(
        self,
        config: Config,
        parts: Components,
        photographs: list[Photograph],
        priors: list[Image.Image],
        place: tuple[int, int],
    ) -> None:
        """place: (rank, world size)."""
        self._config, self._place = config, place
        flip = config.train.flip
        captions = [p.caption for p in photographs]
        self._photographs = make_pool(parts, [p.picture for p in photographs], captions, flip)
        self._priors = (
            make_pool(parts, priors, [config.class_prompt] * len(priors), flip) if priors else None
        )
        self._num_timesteps = int(parts.schedule.config.num_train_timesteps)
        self.start = 0

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(step) for step in range(self.start, self._config.train.steps))

    def batch(self, step: int) -> Batch:
        """The batch of a step: a pure function of it."""
        seed, size = self._config.seed, self._config.train.batch_size
        positions = batch_positions(step, size, *self._place)
        kinds = [(self._photographs, _PHOTOGRAPHS, 0)]
        if self._priors is not None:
            kinds.append((self._priors, _PRIORS, size))
        latents, ids, hidden, keys, is_prior = [], [], [], [], []
        for pool, purpose, offset in kinds:
            for position in positions:
                chosen = shuffled_index(seed, purpose, position, len(pool.latents))
                # A sample's key is its place in the global batch, never a worker's rank.
                key = offset + position - step * size
                latents.append(self._sample(pool.latents[chosen], step, key))
                ids.append(pool.input_ids[chosen])
                hidden.append(pool.hidden_of(chosen))
                keys.append(key)
                is_prior.append(offset > 0)
        shape = tuple(latents[0].shape)
        return Batch(
            latents=torch.stack(latents),
            noise=noise.normal(seed, "noise", step, keys, shape),
            timesteps=noise.integers(seed, "timestep", step, keys, self._num_timesteps),
            input_ids=torch.stack(ids),
            is_prior=torch.tensor(is_prior),
            step=step,
            hidden=_stacked(hidden),
        )

    def _sample(self, cached: Tensor, step: int, key: int) -> Tensor:
        """Draw from a cached posterior, (F, 2, C, h, w) to (C, h, w)."""
        seed = self._config.seed
        view = int(noise.integers(seed, "flip", step, [key], len(cached)))
        mean, std = cached[view].unbind()
        return mean + std * noise.normal(seed, "posterior", step, [key], tuple(mean.shape))[0]
