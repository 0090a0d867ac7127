"""The door for model families: what the rest of the product may know of a model.

A family is a `ModelFamily`, which says what its directories look like and what it can do, and a
`ModelFunctions` class, which computes with its parts. The first is read before anything heavy is
imported, and names the second. `docs/add-a-model-family.md` shows how one is added.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.kohya_names import AdapterFileLayer, KohyaNames
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.single_file_names import SingleFileEncoderNames

if TYPE_CHECKING:
    from dreambooth_ray.models.model_functions import ModelFunctions

INDEX = "model_index.json"
# Packages outside the tree name their `ModelFamily` under it.
ENTRY_POINTS = "dreambooth_ray.families"
BUILT_IN = (
    "dreambooth_ray.models.families.stable_diffusion:FAMILY",
    "dreambooth_ray.models.families.stable_diffusion_xl:FAMILY",
    "dreambooth_ray.models.families.z_image:FAMILY",
    "dreambooth_ray.models.families.flux1:FAMILY",
    "dreambooth_ray.models.families.flux2_klein:FAMILY",
    "dreambooth_ray.models.families.flux2_dev:FAMILY",
    "dreambooth_ray.models.families.stable_diffusion_3:FAMILY",
    "dreambooth_ray.models.families.qwen_image:FAMILY",
    "dreambooth_ray.models.families.chroma:FAMILY",
    "dreambooth_ray.models.families.krea2:FAMILY",
    "dreambooth_ray.models.families.sana:FAMILY",
)


@dataclass(frozen=True)
class Part:
    """A network, in a folder of its name.

    class_name: as diffusers or transformers call it
    wider_classes: that it is the inner part of, and is read from as well
    """

    name: str
    library: Literal["diffusers", "transformers"]
    class_name: str
    wider_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextEncoderPart(Part):
    """A text encoder and its tokenizer's folder.

    can_train: not of large language models
    overflows: whether its activations leave float16's range: bfloat16 takes its place
    """

    tokenizer: str = "tokenizer"
    tokenizer_class: str = "CLIPTokenizer"
    can_train: bool = False
    overflows: bool = False


def make_clip_encoder_part(class_name: str = "CLIPTextModel", number: str = "") -> TextEncoderPart:
    """One of CLIP's, which can be trained. number: behind the names of both folders, _2 say"""
    return TextEncoderPart(
        f"text_encoder{number}",
        "transformers",
        class_name,
        tokenizer=f"tokenizer{number}",
        can_train=True,
    )


def make_t5_encoder_part(number: str) -> TextEncoderPart:
    """T5's. number: as of `make_clip_encoder_part`"""
    return TextEncoderPart(
        f"text_encoder{number}",
        "transformers",
        "T5EncoderModel",
        tokenizer=f"tokenizer{number}",
        tokenizer_class="T5TokenizerFast",
        overflows=True,
    )


# Layers of attention: of UNets as of diffusers' transformers, and of CLIP.
ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


# What only some families can do; the rest refuse it by name.
Feature = Literal[
    "kv",  # train.method=kv
    "learned",  # identifier.kind=learned
    "prompt_weights",  # (red:1.3) in prompts
    "clip_skip",
    "deepcache",  # cache_every
    "image_to_image",
    "inpainting",
]


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """What a family's directories look like, and what it can do.

    pipeline_classes: of diffusers, as in model_index.json; the first is written into bundles
    process: how its images are noised: DDPM's way, or along straight lines (flow matching)
    flow_schedulers: that a directory may name beside FlowMatchEulerDiscreteScheduler
    lora_targets, text_lora_targets: names that adapted layers end with, where none are configured
    sampling_defaults: of SamplingParams, where a request leaves them open
    narrow_layers: names that adapted layers end with whose width may be below the rank of all
    loss_defaults: of LossConfig, likewise
    check: looks at a directory by its files alone; raises ConfigError
    size_multiple: of a directory: what both sides of an image are multiples of, pixels
    default_side: of a directory: of the square images that it was trained on, pixels
    architecture: of a directory: as weight files name it (Stability AI's model specification)
    max_side: of a directory: the longest side that an image can have, pixels; None is no limit
    methods: of train.method; without any, training is refused and `instead` says what to do
    max_prompt_tokens: with the marks around a prompt; None where one of any length is taken
    kohya_names: where `export_formats` has "kohya"
    list_adapter_layer_names: of a directory, by the name of a layer of the denoiser: more names
        that files of adapters have for it, beside diffusers' and those of kohya_names
    single_file_encoders: of a directory: where `export_formats` has "single-file", by part
    half_dtype: that a GPU samples in
    has_guidance: whether guidance_scale means anything
    embeds_guidance: whether the denoiser is told it, and asked once: nothing is compared with a
        prediction without the prompt
    choose_variant: of a directory: the family as it is there, where not all its models are alike
    text_function_has_one_output: whether a CUDA graph can be made of it
    layers_left_out: layers at a text encoder's end that are left out where clip_skip is 0
    functions: "module:class" of the `ModelFunctions`, imported when a model is loaded
    """

    name: str
    title: str
    pipeline_classes: tuple[str, ...]
    denoiser: Part
    vae: Part = Part("vae", "diffusers", "AutoencoderKL")
    text_encoders: tuple[TextEncoderPart, ...]
    process: Literal["diffusion", "flow"]
    flow_schedulers: tuple[str, ...] = ()
    functions: str
    check: Callable[[Path], None]
    size_multiple: Callable[[Path], int]
    default_side: Callable[[Path], int]
    architecture: Callable[[Path], str]
    lora_targets: tuple[str, ...]
    narrow_layers: tuple[str, ...] = ()
    text_lora_targets: tuple[str, ...] = ()
    features: frozenset[Feature] = frozenset()
    methods: tuple[str, ...] = ("full", "lora")
    instead: str = ""
    max_prompt_tokens: int | None = None
    solvers: tuple[str, ...] = ("euler",)
    export_formats: tuple[str, ...] = ("diffusers", "lora")
    kohya_names: KohyaNames | None = None
    list_adapter_layer_names: Callable[[Path, str], Sequence[AdapterFileLayer]] | None = None
    single_file_encoders: Callable[[Path], Mapping[str, SingleFileEncoderNames]] | None = None
    text_function_has_one_output: bool = True
    half_dtype: Literal["float16", "bfloat16"] = "float16"
    has_guidance: bool = True
    embeds_guidance: bool = False
    layers_left_out: int = 0
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    max_side: Callable[[Path], int] | None = None
    loss_defaults: Mapping[str, Any] = field(default_factory=dict)
    choose_variant: Callable[[Path], "ModelFamily"] | None = None

    @property
    def networks(self) -> tuple[Part, ...]:
        """All parts with weights, the denoiser first."""
        return (self.denoiser, self.vae, *self.text_encoders)

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of a directory, tokenizers and scheduler included."""
        tokenizer_folders = dict.fromkeys(encoder.tokenizer for encoder in self.text_encoders)
        return (*(part.name for part in self.networks), *tokenizer_folders, "scheduler")

    @property
    def trainable_text_encoders(self) -> tuple[TextEncoderPart, ...]:
        """Those that can be trained."""
        return tuple(encoder for encoder in self.text_encoders if encoder.can_train)

    def load_functions(self) -> "ModelFunctions":
        """What computes with the parts; imports torch and diffusers."""
        module_path, _, class_name = self.functions.partition(":")
        functions: ModelFunctions = getattr(importlib.import_module(module_path), class_name)(self)
        return functions

    def can(self, feature: Feature) -> bool:
        """Whether it has a feature."""
        return feature in self.features


@functools.cache
def list_families() -> tuple[ModelFamily, ...]:
    """All families: those of the product, then those that installed packages bring."""
    families = [_load_family(family_path) for family_path in BUILT_IN]
    families += [entry_point.load() for entry_point in entry_points(group=ENTRY_POINTS)]
    return tuple(families)


def _load_family(family_path: str) -> ModelFamily:
    module_path, _, attribute_name = family_path.partition(":")
    family: ModelFamily = getattr(importlib.import_module(module_path), attribute_name)
    return family


def find_family(directory: Path) -> ModelFamily:
    """The family of a directory in diffusers format, by its model_index.json.

    A directory without one can only be of the first family, Stable Diffusion, whose trainers
    left it out.
    raises: ConfigError for a pipeline that no family has
    """
    families = list_families()
    if not (directory / INDEX).is_file():
        return _choose_family_variant(families[0], directory)
    pipeline_class = read_json(directory / INDEX).get("_class_name")
    # A package's goes before the product's own: whoever has installed it wants it.
    for family in reversed(families):
        if pipeline_class in family.pipeline_classes:
            return _choose_family_variant(family, directory)
    known_families = ", ".join(f"{f.title} ({f.pipeline_classes[0]})" for f in families)
    raise ConfigError(
        f"its {INDEX} says {pipeline_class}, a model that is not known; known are {known_families}"
    )


def _choose_family_variant(family: ModelFamily, directory: Path) -> ModelFamily:
    return family.choose_variant(directory) if family.choose_variant else family
