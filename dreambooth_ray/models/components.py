"""The loaded parts of a model of any family, of any size."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from dreambooth_ray.models import lora, tokens
from dreambooth_ray.models.family import INDEX, ModelFamily, Part, find_family
from dreambooth_ray.models.model_directory import adapted_base, base_directory, model_directory
from dreambooth_ray.models.network_loading import explained_loading, load_network_strictly
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.storage import paths

if TYPE_CHECKING:
    from dreambooth_ray.models.model_functions import ModelFunctions, TextForward

# Of the forward process, whatever solver a directory's own scheduler is.
_SCHEDULERS = {
    "diffusion": diffusers.DDPMScheduler,
    "flow": diffusers.FlowMatchEulerDiscreteScheduler,
}


@dataclass
class Components:
    """The parts of a model, and what computes with them.

    text_encoders, tokenizers: by the name of their folder; schedule: diffusers' scheduler, of the
    forward process; settings: of model_index.json, beside the parts' names
    """

    functions: "ModelFunctions"
    denoiser: Any
    vae: Any
    text_encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    schedule: Any
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> ModelFamily:
        """The model's family."""
        return self.functions.family

    @property
    def latent_factor(self) -> int:
        """Pixels a latent spans, each way."""
        return self.functions.latent_factor(self.vae)

    @property
    def networks(self) -> dict[str, Any]:
        """All parts with weights by the name of their folder, the denoiser first."""
        family = self.family
        return {
            family.denoiser.name: self.denoiser,
            family.vae.name: self.vae,
            **self.text_encoders,
        }

    @property
    def trainable_text_encoders(self) -> dict[str, Any]:
        """Those that can be trained, by name, in their order."""
        return {
            part.name: self.text_encoders[part.name] for part in self.family.trainable_text_encoders
        }

    @property
    def text_forward_functions(self) -> "dict[str, TextForward]":
        """The text encoders as `ModelFunctions.encode_prompt` takes them, without adapters."""
        return {
            name: partial(_call_encoder, encoder) for name, encoder in self.text_encoders.items()
        }

    def set_network(self, name: str, network: Any) -> None:
        """Put a network in the place of the one in that folder, in place."""
        if name in self.text_encoders:
            self.text_encoders[name] = network
        elif name == self.family.denoiser.name:
            self.denoiser = network
        elif name == self.family.vae.name:
            self.vae = network
        else:
            raise KeyError(name)

    # Of a family with a UNet and one text encoder, such as the toy's.

    @property
    def unet(self) -> Any:
        """The denoiser."""
        return self.denoiser

    @property
    def text_encoder(self) -> Any:
        """The first text encoder."""
        return self.text_encoders["text_encoder"]

    @property
    def tokenizer(self) -> Any:
        """The first tokenizer."""
        return self.tokenizers["tokenizer"]


def _call_encoder(
    encoder: Any, ids: Tensor, mask: Tensor | None = None, output_hidden_states: bool = False
) -> Any:
    return encoder(ids, attention_mask=mask, output_hidden_states=output_hidden_states)


def quiet_libraries() -> None:
    """Silence library warnings that no user can act on."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    # It tells at each import which of its kernels this machine can't load.
    logging.getLogger("torchao").setLevel(logging.ERROR)


def load_components(directory: Path) -> Components:
    """Load all parts in float32; the VAE frozen. Adapters are fused into their base.

    raises: ConfigError naming the part whose files are damaged, missing or of another model,
        StorageError where the disk they are on does not answer
    """
    quiet_libraries()
    if base_model := adapted_base(directory):
        components = load_components(model_directory(base_model[0]))
        _fuse_adapters(components, directory)
        if (directory / paths.ADAPTER_SCHEDULER).is_dir():
            components.schedule = type(components.schedule).from_pretrained(
                directory / paths.ADAPTER_SCHEDULER
            )
        return components
    return find_family(directory).load_functions().load(directory)


def load_family_parts(functions: "ModelFunctions", directory: Path) -> Components:
    """Every part that a family names, from its folder."""
    family = functions.family
    return Components(
        functions=functions,
        denoiser=load_network(directory, family.denoiser),
        vae=load_network(directory, family.vae).eval().requires_grad_(False),
        text_encoders={part.name: load_network(directory, part) for part in family.text_encoders},
        tokenizers={
            part.tokenizer: load_tokenizer(directory, part.tokenizer, part.tokenizer_class)
            for part in family.text_encoders
        },
        schedule=_SCHEDULERS[family.process].from_pretrained(directory, subfolder="scheduler"),
        settings=read_pipeline_settings(directory),
    )


def build_empty_parts(functions: "ModelFunctions", directory: Path) -> Components:
    """Every network that a family names, by its configuration alone."""
    family = functions.family
    return Components(
        functions=functions,
        denoiser=build_empty_network(directory, family.denoiser),
        vae=build_empty_network(directory, family.vae).requires_grad_(False),
        text_encoders={
            part.name: build_empty_network(directory, part) for part in family.text_encoders
        },
        tokenizers={},
        schedule=None,
        settings=read_pipeline_settings(directory),
    )


def load_network(directory: Path, part: Part) -> Any:
    """A network from the files that `find_weights` names, in float32.

    raises: ConfigError naming its folder
    """
    network_library: Any = diffusers if part.library == "diffusers" else transformers
    with explained_loading(directory / part.name):
        weight_files = find_weights(directory / part.name, part.name)
        network_class = getattr(network_library, part.class_name)
        return load_network_strictly(network_class, directory, weight_files.variant, part.name)


def build_empty_network(directory: Path, part: Part) -> Any:
    """A network by its configuration alone, as the current torch device makes it."""
    if part.library == "diffusers":
        network_class = getattr(diffusers, part.class_name)
        return network_class.from_config(network_class.load_config(directory, subfolder=part.name))
    network_class = getattr(transformers, part.class_name)
    config = network_class.config_class.from_pretrained(directory, subfolder=part.name)
    return network_class(config)


def read_pipeline_settings(directory: Path) -> dict[str, Any]:
    """What model_index.json says beside the names of parts; empty where there is none."""
    model_index_path = directory / INDEX
    return read_json(model_index_path) if model_index_path.is_file() else {}


def load_tokenizer(directory: Path, name: str, class_name: str) -> Any:
    """raises: ConfigError naming the folder"""
    with explained_loading(directory / name):
        return getattr(transformers, class_name).from_pretrained(directory, subfolder=name)


def load_pipeline(directory: Path) -> DiffusionPipeline:
    """diffusers' own pipeline over a directory, float32, without safety checker or bar.

    Adapters are fused into their base.
    """
    return build_pipeline(load_components(directory), directory)


def build_pipeline(parts: Components, directory: Path) -> DiffusionPipeline:
    """diffusers' own pipeline of loaded parts, with the scheduler of the directory they are from.

    directory: a model's, or an adapter bundle
    """
    pipeline = parts.functions.build_pipeline(parts, base_directory(directory))
    if (directory / paths.ADAPTER_SCHEDULER).is_dir():
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(parts.schedule.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_scheduler(directory: Path, default: str) -> Any:
    """The scheduler of a directory; default: its class where the file names none we have"""
    with explained_loading(directory / "scheduler"):
        scheduler_config = read_json(directory / "scheduler" / "scheduler_config.json")
        scheduler_class_name = str(scheduler_config.get("_class_name", default))
        scheduler_class: Any = getattr(diffusers, scheduler_class_name, getattr(diffusers, default))
        return scheduler_class.from_pretrained(directory, subfolder="scheduler")


def _fuse_adapters(parts: Components, bundle: Path) -> None:
    adapter_folder = bundle / paths.ADAPTER
    for name, network in parts.networks.items():
        if (adapter_folder / name).is_dir():
            fused_network: nn.Module = lora.fuse_adapters(network, adapter_folder / name)
            parts.set_network(name, fused_network)
    tokens.add_words(parts, tokens.read_learned_words(adapter_folder))
