"""What training sees, prepared once: cached latents and token ids, addressed by step.

Legend: N images, F orientations (as is, mirrored), C latent channels, h, w latent
sides, B batch of one worker (photographs first, then class images), K different captions,
L tokens, D their width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.sampler import batch_positions, growing_set_index, shuffled_index
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.trainable_params import is_trained
from dreambooth_ray.models.vae_posterior import encode_posterior
from dreambooth_ray.objective import noise
from dreambooth_ray.sampling.prompt_windows import embed_windows, tokenize_windows

# Purposes of the shuffles; a further subject's photographs have _NEXT_SUBJECT added.
_PHOTOGRAPHS, _PRIORS, _NEXT_SUBJECT = 21, 22, 100


@dataclass
class Batch:
    """One worker's share of a step, or a part of it. Lightning moves it to the device in place.

    latents, noise: (B, C, h, w) float32; timesteps: (B,) int64; input_ids: (B, L) int64, or
    (B, k, L) where captions are long; num_photographs: rows of photographs, which come first; step
    counts from 0; hidden: (B, k L, D) text embeddings, where the text encoder is frozen, else None;
    starts_step, ends_step: whether it is the first and the last part of its step
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    input_ids: Tensor
    num_photographs: int
    step: int
    hidden: Tensor | None = None
    ends_step: bool = True
    starts_step: bool = True

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while the host goes on; torch's loader calls this."""
        tensors: dict[str, Any] = {
            name: value.pin_memory()
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


class CachedImage(NamedTuple):
    """One image: latents (F, 2, C, h, w), and the captions it may get."""

    latents: Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True)
class PhotographPool:
    """One subject's cached photographs, each with the captions it may get.

    latents: (N, F, 2, C, h, w), scaled mean and std; subject_index: which subject, from 0
    """

    latents: Tensor
    captions: list[tuple[str, ...]]
    subject_index: int = 0

    def choose_index(self, seed: int, position: int) -> int:
        """Which image comes at a position of the endless sequence: shuffled each time round."""
        purpose = _PHOTOGRAPHS + _NEXT_SUBJECT * self.subject_index
        return shuffled_index(seed, purpose, position, len(self.latents))

    def get_image(self, index: int) -> CachedImage:
        """Image `index`."""
        return CachedImage(self.latents[index], self.captions[index])


class PriorPool:
    """Class images, each read, and if need be waited for, when a step needs it."""

    def __init__(self, priors: PriorSet, count: int, num_positions: int, flip: bool) -> None:
        """count: how many of them, the first, are trained on; num_positions: of the whole run."""
        self._priors, self._views = priors, 2 if flip else 1
        self._count, self._num_positions = count, num_positions

    def choose_index(self, seed: int, position: int) -> int:
        """Which class image comes at a position: each as late as it can, in order of generation."""
        return growing_set_index(seed, _PRIORS, position, self._count, self._num_positions)

    def get_image(self, index: int) -> CachedImage:
        """Class image `index`, waited for if it is not there yet."""
        caption = self._priors.captions[self._priors.caption_index(index)]
        return CachedImage(self._priors.load_posterior(index)[: self._views], (caption,))


class CaptionEmbeddings:
    """Token ids of all captions, and their embeddings where the text encoder is frozen.

    Captions longer than the encoder's window are taken whole, in k windows; then all have k.

    ids: (K, L) or (K, k, L) int64; hidden: (K, k L, D) float32 or None
    """

    def __init__(self, components: Components, captions: list[str]) -> None:
        unique_captions = sorted(set(captions))
        self._row = {caption: row for row, caption in enumerate(unique_captions)}
        self.ids = tokenize_windows(components.tokenizer, unique_captions)
        self.hidden = (
            None if is_trained(components.text_encoder) else _embed_captions(components, self.ids)
        )

    def look_up(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """The captions' rows of ids and, where cached, of embeddings."""
        rows = [self._row[caption] for caption in captions]
        return self.ids[rows], None if self.hidden is None else self.hidden[rows]


@torch.no_grad()
def _embed_captions(components: Components, ids: Tensor) -> Tensor:
    """One by one, so that a caption's embedding does not depend on its neighbours."""
    encoder = components.text_encoder

    def encode(rows: Tensor) -> Tensor:
        return torch.cat([encoder(row[None]).last_hidden_state for row in rows])

    end_id = components.tokenizer.eos_token_id
    return torch.cat(
        [embed_windows(encode, row[None].to(encoder.device), end_id).cpu() for row in ids]
    )


def encode_photographs(
    components: Components, photographs: list[Photograph], flip: bool, subject_index: int = 0
) -> PhotographPool:
    """Encode photographs through the frozen VAE, each once for each orientation."""
    rows = [encode_posterior(components.vae, p.image, flip) for p in photographs]
    return PhotographPool(torch.stack(rows), [p.captions for p in photographs], subject_index)


class TrainingDataset(IterableDataset[Batch]):
    """Yields the batches of steps start..total-1 for one worker, each in `accumulate` parts."""

    def __init__(
        self,
        config: Config,
        components: Components,
        photographs: list[list[Photograph]],
        priors: PriorSet | None,
        rank_and_world_size: tuple[int, int],
    ) -> None:
        """photographs: by subject; rank_and_world_size: (rank, world size)."""
        self._config, self._rank_and_world_size = config, rank_and_world_size
        self._num_timesteps = int(components.schedule.config.num_train_timesteps)
        self.start, self.accumulate = 0, config.train.accumulate
        flip = config.train.flip
        self._photographs = [
            encode_photographs(components, photograph, flip, index)
            for index, photograph in enumerate(photographs)
        ]
        num_held_out = config.prior.count - config.num_class_images
        num_positions = config.train.steps * config.train.batch_size
        self._priors = (
            PriorPool(priors, priors.count - num_held_out, num_positions, flip) if priors else None
        )
        captions = [
            c for subject in photographs for photograph in subject for c in photograph.captions
        ]
        self._captions = CaptionEmbeddings(
            components, ["", *captions, *(priors.captions if priors else [])]
        )

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start, self._config.train.steps)
        return (self.make_batch(step, part) for step in steps for part in range(self.accumulate))

    def make_batch(self, step: int, part: int = 0) -> Batch:
        """A part of the batch of a step: a pure function of both."""
        size = self._config.train.batch_size
        share = batch_positions(step, size, *self._rank_and_world_size)
        part_size = len(share) // self.accumulate
        positions = share[part * part_size : (part + 1) * part_size]
        latents, captions, keys = [], [], []
        for offset in (0, size) if self._priors else (0,):
            for position in positions:
                # A sample's key is its index in the global batch, never a worker's rank.
                key = offset + position - step * size
                image = self._get_prior(position) if offset else self._get_photograph(position)
                latents.append(self._sample_latents(image.latents, step, key))
                captions.append(self._choose_caption(image.captions, step, key))
                keys.append(key)
        ids, hidden = self._captions.look_up(captions)
        return Batch(
            latents=torch.stack(latents),
            noise=self._sample_noise(step, keys, tuple(latents[0].shape)),
            timesteps=self._sample_timesteps(step, keys),
            input_ids=ids,
            num_photographs=len(positions),
            step=step,
            hidden=hidden,
            ends_step=part == self.accumulate - 1,
            starts_step=part == 0,
        )

    def describe_inputs(self, step: int) -> list[str]:
        """What the global batch of a step (from 0) is made of, in words."""
        size, seed = self._config.train.batch_size, self._config.seed
        positions = range(step * size, (step + 1) * size)
        descriptions = []
        for position in positions:
            turn, subject = divmod(position, len(self._photographs))
            index = self._photographs[subject].choose_index(seed, turn)
            descriptions.append(f"photograph {index} of subject {subject}")
        if self._priors is not None:
            descriptions += [f"class image {self._priors.choose_index(seed, p)}" for p in positions]
        return descriptions

    def _get_photograph(self, position: int) -> CachedImage:
        """Subjects take turns; each has its own shuffles."""
        turn, subject = divmod(position, len(self._photographs))
        pool = self._photographs[subject]
        return pool.get_image(pool.choose_index(self._config.seed, turn))

    def _get_prior(self, position: int) -> CachedImage:
        assert self._priors is not None
        return self._priors.get_image(self._priors.choose_index(self._config.seed, position))

    def _sample_latents(self, cached: Tensor, step: int, key: int) -> Tensor:
        """Sample from a cached posterior, (F, 2, C, h, w) to (C, h, w)."""
        seed = self._config.seed
        view = int(noise.integers(seed, "flip", step, [key], len(cached)))
        mean, std = cached[view].unbind()
        return mean + std * noise.normal(seed, "posterior", step, [key], tuple(mean.shape))[0]

    def _choose_caption(self, captions: tuple[str, ...], step: int, key: int) -> str:
        seed, dropout = self._config.seed, self._config.loss.caption_dropout
        if dropout and float(noise.uniform(seed, "caption dropout", step, [key])) < dropout:
            return ""
        if len(captions) == 1:
            return captions[0]
        return captions[int(noise.integers(seed, "caption", step, [key], len(captions)))]

    def _sample_noise(self, step: int, keys: list[int], shape: tuple[int, ...]) -> Tensor:
        """(B, C, h, w): normal, with a shift for each channel where loss.noise_offset says so.

        Source: N. Guttenberg 2023, "Diffusion with offset noise".
        """
        seed, offset = self._config.seed, self._config.loss.noise_offset
        sampled_noise = noise.normal(seed, "noise", step, keys, shape)
        if offset:
            sampled_noise += offset * noise.normal(
                seed, "noise offset", step, keys, (shape[0], 1, 1)
            )
        return sampled_noise

    def _sample_timesteps(self, step: int, keys: list[int]) -> Tensor:
        """(B,) int64, uniform or logit-normal (Esser et al. 2024, arXiv 2403.03206, 3.1)."""
        seed, loss = self._config.seed, self._config.loss
        if loss.timesteps == "uniform":
            return noise.integers(seed, "timestep", step, keys, self._num_timesteps)
        normal = noise.normal(seed, "timestep", step, keys, (1,))[:, 0]
        fraction = torch.sigmoid(loss.logit_mean + loss.logit_std * normal)
        return (fraction * self._num_timesteps).long().clamp(max=self._num_timesteps - 1)
