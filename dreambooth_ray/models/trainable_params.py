"""Which weights each train.method trains.

Weights keep their names in training; a checkpoint holds only the trainable ones.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models import lora, tokens
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.precision import autocast_dtype
from dreambooth_ray.models.quantization import quantize_linear_layers

_KEYS_AND_VALUES = re.compile(r"\.attn2\.to_[kv]\.")


def apply_train_method(config: Config, parts: Components, *, quantizes: bool = False) -> None:
    """Freeze all weights but the trainable ones, in place; for lora, add the adapters.

    quantizes: whether the UNet's frozen layers become model.quantization's, as for training
    """
    _rescale_schedule(config, parts)
    for network in (parts.denoiser, *parts.text_encoders.values()):
        network.requires_grad_(False)
    if quantizes:
        dtype = autocast_dtype(config.train.precision)
        quantize_linear_layers(parts.denoiser, config.model.quantization, dtype)
    _mark_trainable_weights(config, parts)
    if config.identifier.kind == "learned":
        words = {config.word(s): s.class_noun for s in config.all_subjects}
        tokens.add_trainable_words(parts, words)


def prepare_tokenizers_and_schedule(config: Config, parts: Components) -> None:
    """Tokenizer and schedule of untrained parts as training has them, in place.

    parts: with networks in training, whose learned words the tokenizers do not know
    """
    _rescale_schedule(config, parts)
    if config.identifier.kind == "learned":
        words = [config.word(s) for s in config.all_subjects]
        for part in parts.family.trainable_text_encoders:
            parts.tokenizers[part.tokenizer].add_tokens(words)


def _rescale_schedule(config: Config, parts: Components) -> None:
    """For loss.zero_terminal_snr; sampling then has to begin at the last timestep, trailing."""
    # There is none where a model is only measured.
    if config.loss.zero_terminal_snr and parts.schedule is not None:
        parts.schedule = type(parts.schedule).from_config(
            parts.schedule.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )


def _mark_trainable_weights(config: Config, parts: Components) -> None:
    train_config = config.train
    if train_config.method == "lora":
        if train_config.unet:
            target_modules = train_config.lora.target_modules or parts.family.lora_targets
            lora.inject_adapters(parts.denoiser, train_config.lora, target_modules, config.seed)
        if train_config.text_encoder:
            target_modules = train_config.lora.text_target_modules or parts.family.text_lora_targets
            for index, (name, encoder) in enumerate(parts.trainable_text_encoders.items()):
                unused_layers = parts.functions.text_training.unused_layers(name, encoder)
                lora.inject_adapters(
                    encoder, train_config.lora, target_modules, config.seed + index, unused_layers
                )
        return
    parts.denoiser.requires_grad_(train_config.unet and train_config.method == "full")
    for name, encoder in parts.trainable_text_encoders.items():
        encoder.requires_grad_(train_config.text_encoder)
        for layer in parts.functions.text_training.unused_layers(name, encoder):
            encoder.get_submodule(layer).requires_grad_(False)
    if train_config.method == "kv":
        for name, weight in parts.denoiser.named_parameters():
            weight.requires_grad_(bool(_KEYS_AND_VALUES.search(name)))


def is_text_trained(parts: Components) -> bool:
    """Whether any text encoder has a trainable weight."""
    return any(has_trainable_weights(encoder) for encoder in parts.text_encoders.values())


def has_trainable_weights(model: nn.Module) -> bool:
    """Whether any weight of a model is trainable."""
    return any(p.requires_grad for p in model.parameters())


def load_trainable_params(parts: Components, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load trained weights into parts that `apply_train_method` has prepared.

    weights: by part and name, as in a checkpoint
    raises: CheckpointError unless they are exactly the weights that the method trains
    """
    check_trainable_params(parts, weights)
    # In the order in which their file has them.
    for part_name, network in sorted(_list_networks(parts)):
        load_part_weights(network, weights.get(part_name, {}))


def check_trainable_params(parts: Components, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """raises: CheckpointError unless these are exactly the weights that the method trains"""
    for part, network in _list_networks(parts):
        mismatched_names = sorted(
            _list_trainable_weights(network).keys() ^ set(weights.get(part, {}))
        )
        if mismatched_names:
            raise CheckpointError(
                f"the checkpoint holds other weights of {part} than the configuration trains, "
                f"{mismatched_names[0]} for one; it is of another train.method or model"
            )


def _list_networks(parts: Components) -> list[tuple[str, nn.Module]]:
    """The parts that can be trained, by name."""
    return [(parts.family.denoiser.name, parts.denoiser), *parts.text_encoders.items()]


def load_part_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load trained weights, by name, into one part."""
    copy_weights_into_params(_list_trainable_weights(model), weights)


def _list_trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def copy_weights_into_params(params: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy weights into parameters of the same names, one by one, in the order of names.

    raises: CheckpointError if one has another shape
    """
    for weight_name in sorted(params):
        weight, param = weights[weight_name], params[weight_name]
        if weight.shape != param.shape:
            raise CheckpointError(
                f"{weight_name} has the shape {tuple(weight.shape)} in the checkpoint and "
                f"{tuple(param.shape)} in the model; it is of another train.method or model"
            )
        param.data.copy_(weight)
