"""What each train.method trains: which weights move, under which names, and what comes out.

A model's weights keep their names in training; a checkpoint holds those alone that move.
"""

import re
from collections.abc import Mapping

from diffusers import DDPMScheduler
from torch import Tensor, nn

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models import lora, tokens
from dreambooth_ray.models.components import Components

_KEYS_AND_VALUES = re.compile(r"\.attn2\.to_[kv]\.")


def apply_method(config: Config, parts: Components) -> None:
    """Freeze what stays and mark what moves, in place; for lora, put the adapters in."""
    if config.loss.zero_terminal_snr:
        parts.schedule = DDPMScheduler.from_config(
            parts.schedule.config, rescale_betas_zero_snr=True
        )
    parts.unet.requires_grad_(False)
    parts.text_encoder.requires_grad_(False)
    _apply_to_weights(config, parts)
    if config.identifier.kind == "learned":
        words = {config.word(s): s.class_noun for s in config.all_subjects}
        tokens.learn(parts.tokenizer, parts.text_encoder, words)


def _apply_to_weights(config: Config, parts: Components) -> None:
    train = config.train
    if train.method == "lora":
        if train.unet:
            lora.inject(parts.unet, train.lora, train.lora.target_modules, config.seed)
        if train.text_encoder:
            targets = train.lora.text_target_modules
            lora.inject(parts.text_encoder, train.lora, targets, config.seed)
        return
    parts.unet.requires_grad_(train.unet and train.method == "full")
    parts.text_encoder.requires_grad_(train.text_encoder)
    if train.method == "kv":
        for name, weight in parts.unet.named_parameters():
            weight.requires_grad_(bool(_KEYS_AND_VALUES.search(name)))


def is_trained(model: nn.Module) -> bool:
    """Whether any weight of a model moves."""
    return any(p.requires_grad for p in model.parameters())


def load_trained(parts: Components, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put trained weights into parts that `apply_method` has been at.

    weights: by part and name, as a checkpoint has them
    raises: CheckpointError unless they are exactly those that the method trains
    """
    for part in ("unet", "text_encoder"):
        model: nn.Module = getattr(parts, part)
        given = weights.get(part, {})
        wanted = {n for n, p in model.named_parameters() if p.requires_grad}
        odd = sorted(wanted ^ set(given))
        if odd:
            raise CheckpointError(
                f"the checkpoint holds other weights of {part} than the configuration trains, "
                f"{odd[0]} for one; it is of another train.method or model"
            )
        model.load_state_dict(dict(given), strict=False)
