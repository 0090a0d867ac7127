"""The peer of theme `train`: a plain loop as diffusers' DreamBooth documentation describes it.

Written after examples/dreambooth/train_dreambooth.py and train_dreambooth_lora.py with their
defaults and --with_prior_preservation --train_text_encoder: accelerate, one process, AdamW,
images read, resized and encoded by the VAE, and captions by the text encoder, every step.
The scripts' torchvision transforms are written with PIL and torch.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import WallAndCpuTime
from dreambooth_ray.compat.accelerate import reset_accelerator_state
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.families.stable_diffusion import FAMILY


class PairDataset(Dataset[dict[str, Tensor]]):
    """Photographs and class images with their token ids, read anew each time."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self._photographs = sorted(Path(config.subject.photos).glob("*.png"))
        self._class_images = sorted(Path(str(config.prior.folder)).glob("*.png"))
        self._side, self._tokenizer = config.train.side_px, tokenizer
        subject = config.subject
        self._prompts = (
            f"a {subject.identifier} {subject.class_noun}",
            f"a {subject.class_noun}",
        )

    def __len__(self) -> int:
        return max(len(self._photographs), len(self._class_images))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "instance_images": self._read_image(self._photographs[index % len(self._photographs)]),
            "class_images": self._read_image(self._class_images[index % len(self._class_images)]),
            "instance_ids": self._tokenize(self._prompts[0]),
            "class_ids": self._tokenize(self._prompts[1]),
        }

    def _read_image(self, path: Path) -> Tensor:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        image = ImageOps.fit(image, (self._side, self._side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    def _tokenize(self, prompt: str) -> Tensor:
        token_ids: Tensor = self._tokenizer(
            prompt, truncation=True, padding="max_length",
            max_length=self._tokenizer.model_max_length, return_tensors="pt",
        ).input_ids  # fmt: skip
        return token_ids


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Photographs first, then class images, in one forward."""
    pixel_tensors = [e["instance_images"] for e in examples] + [e["class_images"] for e in examples]
    token_ids = [e["instance_ids"] for e in examples] + [e["class_ids"] for e in examples]
    return {
        "pixel_values": torch.stack(pixel_tensors).contiguous(),
        "input_ids": torch.cat(token_ids),
    }


class PlainLoop:
    """Lives in a process of its own; `run_steps` goes on where it stopped."""

    def __init__(
        self,
        config: Config,
        directory: str,
        parts: Components | None = None,
        mixed_precision: str = "no",
    ) -> None:
        """parts: those of the directory, if they are loaded; mixed_precision: as accelerate's"""
        torch.set_num_threads(1)
        self._config, self._directory, train_config = config, directory, config.train
        # One process times several; accelerate keeps the first one's precision otherwise.
        reset_accelerator_state()
        self.accelerator = Accelerator(cpu=not config.cluster.gpus, mixed_precision=mixed_precision)
        parts = parts or load_components(Path(directory))
        self.vae, self._schedule = parts.vae, parts.schedule
        self.unet, self.text_encoder = parts.unet.train(), parts.text_encoder
        self._place_frozen(torch.bfloat16 if mixed_precision == "bf16" else torch.float32)
        if train_config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._weights = self._select_trained_weights()
        optimizer = torch.optim.AdamW(
            self._weights, lr=train_config.lr, weight_decay=train_config.weight_decay, eps=1e-8
        )
        lr_scheduler = get_scheduler("constant", optimizer=optimizer)
        batch_size = train_config.batch_size
        loader = DataLoader(
            PairDataset(config, parts.tokenizer),
            batch_size=batch_size,
            shuffle=True,
            collate_fn=collate,
        )
        accelerate_prepare = self.accelerator.prepare
        self.unet, self.optimizer, self._loader, self._scheduler = accelerate_prepare(
            self.unet, optimizer, loader, lr_scheduler
        )
        if train_config.text_encoder:
            self.text_encoder = accelerate_prepare(self.text_encoder.train())
        self._batches = self._repeat_batches()

    def _place_frozen(self, dtype: torch.dtype) -> None:
        """What the scripts don't train, they cast to the dtype of the computation."""
        train_config, device = self._config.train, self.accelerator.device
        self.vae.to(device, dtype)
        if not train_config.text_encoder:
            self.text_encoder.to(device, dtype)
        if train_config.method == "lora":
            self.unet.to(device, dtype)

    def _select_trained_weights(self) -> list[torch.nn.Parameter]:
        train_config = self._config.train
        if train_config.method == "lora":
            self.unet.requires_grad_(False)
            self.text_encoder.requires_grad_(False)
            lora_rank = train_config.lora.rank
            self.unet.add_adapter(
                LoraConfig(
                    r=lora_rank, lora_alpha=lora_rank, init_lora_weights="gaussian",
                    target_modules=list(train_config.lora.target_modules or FAMILY.lora_targets),
                )
            )  # fmt: skip
            weights = [p for p in self.unet.parameters() if p.requires_grad]
            for parameter in weights:
                parameter.data = parameter.data.float()
            return weights
        self.text_encoder.requires_grad_(train_config.text_encoder)
        trained_models = (
            (self.unet, self.text_encoder) if train_config.text_encoder else (self.unet,)
        )
        return list(itertools.chain(*(m.parameters() for m in trained_models)))

    def _repeat_batches(self) -> Iterator[Any]:
        while True:
            yield from self._loader

    def run_steps(self, count: int) -> WallAndCpuTime:
        """So many optimizer steps."""
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        for _ in range(count):
            self._train_step(next(self._batches))
        return WallAndCpuTime(time.perf_counter() - start_s, time.process_time() - start_cpu_s)

    def save(self, folder: Path) -> None:
        """What the scripts leave: a pipeline's directory, or an adapter's file."""
        unet = self.accelerator.unwrap_model(self.unet)
        if self._config.train.method == "lora":
            lora_layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
            StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=lora_layers)
            return
        pipeline = StableDiffusionPipeline.from_pretrained(
            self._directory, unet=unet,
            text_encoder=self.accelerator.unwrap_model(self.text_encoder),
            safety_checker=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.save_pretrained(folder)

    def _train_step(self, batch: dict[str, Tensor]) -> None:
        pixels = batch["pixel_values"].to(self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        num_train_timesteps = self._schedule.config.num_train_timesteps
        timesteps = torch.randint(
            0, num_train_timesteps, (len(latents),), device=latents.device
        ).long()
        noisy_latents = self._schedule.add_noise(latents, noise, timesteps)
        hidden = self.text_encoder(batch["input_ids"], return_dict=False)[0]
        prediction = self.unet(noisy_latents, timesteps, hidden, return_dict=False)[0]
        if self._schedule.config.prediction_type == "v_prediction":
            noise = self._schedule.get_velocity(latents, noise, timesteps)
        prediction, class_prediction = torch.chunk(prediction, 2, dim=0)
        target, class_target = torch.chunk(noise, 2, dim=0)
        loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
        prior_loss = F.mse_loss(class_prediction.float(), class_target.float(), reduction="mean")
        self.accelerator.backward(loss + self._config.prior.weight * prior_loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self._weights, self._config.train.max_grad_norm)
        self.optimizer.step()
        self._scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The scripts show the loss on their progress bar and give it to the tracker.
        self.accelerator.log({"loss": loss.detach().item()})
