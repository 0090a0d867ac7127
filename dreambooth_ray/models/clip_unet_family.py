"""What families with a UNet and CLIP's text encoders say of themselves alike.

Nothing heavy is imported.
"""

from functools import partial

from dreambooth_ray.models.clip_unet_checks import read_default_side, read_size_multiple
from dreambooth_ray.models.family import ATTENTION_TARGETS, CLIP_TARGETS, Feature, ModelFamily, Part

# A family with such a UNet; takes the rest of a `ModelFamily`.
make_clip_unet_family = partial(
    ModelFamily,
    denoiser=Part("unet", "diffusers", "UNet2DConditionModel"),
    process="diffusion",
    size_multiple=read_size_multiple,
    default_side=read_default_side,
    lora_targets=ATTENTION_TARGETS,
    text_lora_targets=CLIP_TARGETS,
    methods=("full", "lora", "kv"),
    export_formats=("diffusers", "lora", "kohya", "single-file"),
    solvers=("ddim", "plms", "euler", "euler_a", "dpmpp_2m", "lcm", "tcd"),
)
CLIP_UNET_FEATURES: tuple[Feature, ...] = (
    "kv", "learned", "prompt_weights", "clip_skip", "deepcache", "image_to_image", "inpainting",
)  # fmt: skip
