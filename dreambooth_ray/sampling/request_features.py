"""What of a request a model's family can't do: refused by name."""

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.family_support import find_unsupported_guidance_key
from dreambooth_ray.models.prompt_weights import split_prompt
from dreambooth_ray.sampling.request import Request


def check_features(family: ModelFamily, request: Request) -> None:
    """raises: ConfigError naming the field"""
    sampling_params = request.params
    if sampling_params.solver not in family.solvers:
        raise ConfigError(
            f"solver={sampling_params.solver!r} is not for {family.title}; "
            f"take {', '.join(family.solvers)}"
        )
    if sampling_params.guidance_scale != 1 and not family.has_guidance:
        raise ConfigError(
            f"guidance_scale={sampling_params.guidance_scale:g} is not for {family.title}; leave "
            "it out"
        )
    if unsupported_field := find_unsupported_guidance_key(family, sampling_params):
        raise ConfigError(f"{unsupported_field} is not for {family.title}; leave it out")
    requested_fields = {
        "clip_skip": sampling_params.clip_skip != 0,
        "cache_every": sampling_params.cache_every > 1,
        "image": request.image is not None and request.mask is None,
        "mask": request.mask is not None,
        "negative_prompt": bool(request.negative_prompt) and family.embeds_guidance,
    }
    feature_by_field = {
        "clip_skip": "clip_skip", "cache_every": "deepcache", "image": "image_to_image",
        "mask": "inpainting",
    }  # fmt: skip
    for field, is_requested in requested_fields.items():
        if is_requested and feature_by_field.get(field) not in family.features:
            raise ConfigError(f"{field} is not for {family.title}; leave it out")
    if family.can("prompt_weights"):
        for field in ("prompt", "negative_prompt"):
            split_prompt(getattr(request, field), field)
