"""What training sees, prepared once: cached latents and token ids, addressed by step.

Legend: N pictures, F orientations (as is, mirrored), C latent channels, h, w latent
sides, B batch of one worker (photographs first, then class images), L tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.pairs import batch_positions, in_order_first, shuffled_index
from dreambooth_ray.data.priorset import PriorSet
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.diffusion import noise
from dreambooth_ray.diffusion.components import Components
from dreambooth_ray.diffusion.methods import is_trained
from dreambooth_ray.diffusion.posterior import posterior

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


class Item(NamedTuple):
    """One picture: latents (F, 2, C, h, w), input_ids (L,), hidden (L, D) where cached."""

    latents: Tensor
    input_ids: Tensor
    hidden: Tensor | None


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

    def choose(self, seed: int, position: int) -> int:
        """Which picture comes at a position of the endless sequence: shuffled each time round."""
        return shuffled_index(seed, _PHOTOGRAPHS, position, len(self.latents))

    def item(self, index: int) -> Item:
        """Picture `index`."""
        hidden = None if self.hidden is None else self.hidden[0][self.hidden[1][index]]
        return Item(self.latents[index], self.input_ids[index], hidden)


class PriorPool:
    """Class images, each read, and if need be waited for, when a step wants it."""

    def __init__(self, parts: Components, priors: PriorSet, flip: bool) -> None:
        self._priors, self._views = priors, 2 if flip else 1
        self._ids = tokenize(parts.tokenizer, priors.captions)
        trained = is_trained(parts.text_encoder)
        self._hidden = None if trained else embed(parts.text_encoder, self._ids)

    def choose(self, seed: int, position: int) -> int:
        """As for photographs, but the first time round in the order in which they are made."""
        return in_order_first(seed, _PRIORS, position, self._priors.count)

    def item(self, index: int) -> Item:
        """Class image `index`, waited for if it is not there yet."""
        caption = self._priors.caption(index)
        hidden = None if self._hidden is None else self._hidden[0][self._hidden[1][caption]]
        return Item(self._priors.posterior(index)[: self._views], self._ids[caption], hidden)


def make_pool(
    parts: Components, pictures: list[Image.Image], captions: list[str], flip: bool
) -> Pool:
    """Encode pictures through the frozen VAE, each once for each orientation."""
    rows = [posterior(parts.vae, picture, flip) for picture in pictures]
    ids = tokenize(parts.tokenizer, captions)
    hidden = None if is_trained(parts.text_encoder) else embed(parts.text_encoder, ids)
    return Pool(torch.stack(rows), ids, hidden)


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
        priors: PriorSet | None,
        place: tuple[int, int],
    ) -> None:
        """place: (rank, world size)."""
        self._config, self._place = config, place
        flip = config.train.flip
        captions = [p.caption for p in photographs]
        self._photographs = make_pool(parts, [p.picture for p in photographs], captions, flip)
        self._priors = PriorPool(parts, priors, flip) if priors else None
        self._num_timesteps = int(parts.schedule.config.num_train_timesteps)
        self.start = 0

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(step) for step in range(self.start, self._config.train.steps))

    def batch(self, step: int) -> Batch:
        """The batch of a step: a pure function of it."""
        seed, size = self._config.seed, self._config.train.batch_size
        positions = batch_positions(step, size, *self._place)
        kinds: list[tuple[Pool | PriorPool, int]] = [(self._photographs, 0)]
        if self._priors is not None:
            kinds.append((self._priors, size))
        latents, ids, hidden, keys, is_prior = [], [], [], [], []
        for pool, offset in kinds:
            for position in positions:
                item = pool.item(pool.choose(seed, position))
                # A sample's key is its place in the global batch, never a worker's rank.
                key = offset + position - step * size
                latents.append(self._sample(item.latents, step, key))
                ids.append(item.input_ids)
                hidden.append(item.hidden)
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
