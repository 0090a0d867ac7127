"""Images of the sample prompts, sampled while training goes on."""

from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.precision import cast_untrainable_encoders
from dreambooth_ray.models.trainable_params import prepare_tokenizers_and_schedule
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.training.module import DreamBoothModule


def make_sample_requests(config: Config) -> list[Request]:
    """One request for each sample prompt."""
    size_px = config.train.side_px
    return [
        Request(
            prompt,
            seed=config.seed,
            params=config.sample.sampling_params,
            width_px=size_px,
            height_px=size_px,
        )
        for prompt in config.sample_prompts
    ]


def is_sample_due(config: Config, step: int) -> bool:
    """Whether to sample after this step."""
    interval = config.sample.every
    return bool(interval) and step % interval == 0


def sample_prompt_images(config: Config, components: Components) -> list[tuple[str, np.ndarray]]:
    """Each sample prompt and its image, (H, W, 3) uint8, where the denoiser is.

    components: in training, prepared by `prepare_tokenizers_and_schedule`; left in evaluation mode
    """
    requests = make_sample_requests(config)
    images = _generate_images(components, requests)
    return [(r.prompt, np.asarray(i)) for r, i in zip(requests, images, strict=True)]


def _generate_images(components: Components, requests: list[Request]) -> list[Image.Image]:
    sampling_engine = Engine(components, device=str(components.denoiser.device))
    return [output.image for output in sampling_engine.sample(requests)]


class TrainingImageSampler:
    """Samples with the weights a bundle would have now; training shares no randomness with it."""

    def __init__(self, config: Config, model_directory: Path) -> None:
        """model_directory: the base model's"""
        self._config, self._model_directory = config, model_directory

    def is_due(self, step: int) -> bool:
        """Whether to sample after this step."""
        return is_sample_due(self._config, step)

    def sample_images(self, module: DreamBoothModule) -> list[tuple[str, np.ndarray]]:
        """Each sample prompt and its image, (H, W, 3) uint8."""
        requests = make_sample_requests(self._config)
        images = self.generate_images_for_requests(module, requests)
        return [(r.prompt, np.asarray(i)) for r, i in zip(requests, images, strict=True)]

    def generate_images_for_requests(
        self, module: DreamBoothModule, requests: list[Request]
    ) -> list[Image.Image]:
        """The images that are asked for, one each."""
        components = load_components(self._model_directory)
        components.denoiser = module.denoiser
        components.text_encoders |= module.text_encoders
        prepare_tokenizers_and_schedule(self._config, components)
        cast_untrainable_encoders(components, self._config.train.precision)
        try:
            with module.using_averaged_weights():
                return _generate_images(components, requests)
        finally:
            module.denoiser.train(self._config.train.unet)
            for text_encoder in module.text_encoders.values():
                text_encoder.train()
