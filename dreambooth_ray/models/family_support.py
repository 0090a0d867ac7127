"""What of a configuration a model's family can't do: refused by name, before work starts."""

from collections.abc import Iterator

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import ModelFamily


def check_support(config: Config, family: ModelFamily) -> None:
    """raises: ConfigError naming the key and what to take instead"""
    if not family.methods:
        raise ConfigError(f"model.uri={config.model.uri!r} is a {family.title}: {family.instead}")
    for key, value, remedy in _list_unsupported(config, family):
        raise ConfigError(f"{key}={value} is not for {family.title}, the model's; {remedy}")


Refusal = tuple[str, object, str]


def _list_unsupported(config: Config, family: ModelFamily) -> Iterator[Refusal]:
    yield from _list_unsupported_training(config, family)
    yield from (
        _list_unsupported_flow_losses(config)
        if family.process == "flow"
        else _list_unsupported_diffusion_losses(config)
    )
    for key, sampling_params in (("prior", config.prior), ("sample", config.sample)):
        if (
            "solver" in sampling_params.given_values
            and sampling_params.solver not in family.solvers
        ):
            yield f"{key}.solver", sampling_params.solver, f"take {', '.join(family.solvers)}"
        is_guided = sampling_params.given_values.get("guidance_scale", 1) != 1
        if is_guided and not family.has_guidance:
            yield f"{key}.guidance_scale", sampling_params.guidance_scale, "leave it out"
        if guidance_key := find_unsupported_guidance_key(family, sampling_params):
            yield f"{key}.{guidance_key}", getattr(sampling_params, guidance_key), "leave it out"
        if sampling_params.clip_skip and not family.can("clip_skip"):
            yield f"{key}.clip_skip", sampling_params.clip_skip, "set it 0"
        if sampling_params.cache_every > 1 and not family.can("deepcache"):
            yield f"{key}.cache_every", sampling_params.cache_every, "set it 1"


def _list_unsupported_training(config: Config, family: ModelFamily) -> Iterator[Refusal]:
    train = config.train
    if train.method not in family.methods:
        yield "train.method", train.method, f"take {' or '.join(family.methods)}"
    trains_text_encoder = train.text_encoder and "text_encoder" in train.model_fields_set
    if trains_text_encoder and not family.trainable_text_encoders:
        yield "train.text_encoder", "true", "set it false: its text encoder stays as it is"
    if config.identifier.kind == "learned" and not family.can("learned"):
        reason = (
            "diffusers' pipeline of it reads no learned word"
            if family.trainable_text_encoders
            else "its text encoder stays as it is"
        )
        yield "identifier.kind", "learned", f"take rare_word: {reason}"


def _list_unsupported_diffusion_losses(config: Config) -> Iterator[Refusal]:
    if config.loss.timesteps == "mode":
        yield "loss.timesteps", "mode", "take uniform or logit_normal"
    if config.loss.weighting != "none":
        yield "loss.weighting", config.loss.weighting, "take loss.min_snr_gamma"


def _list_unsupported_flow_losses(config: Config) -> Iterator[Refusal]:
    loss_config = config.loss
    if loss_config.min_snr_gamma is not None:
        yield "loss.min_snr_gamma", loss_config.min_snr_gamma, "leave it out, or set loss.weighting"
    if loss_config.zero_terminal_snr:
        yield "loss.zero_terminal_snr", "true", "set it false: it begins in pure noise anyway"


def find_unsupported_guidance_key(family: ModelFamily, params: SamplingParams) -> str:
    """The first that is about a prediction without the prompt, of a family that makes none."""
    sampling_fields = SamplingParams.model_fields
    guidance_keys = ("guidance_rescale", "guidance_interval", "guidance_every")
    requested_keys = (
        name for name in guidance_keys if getattr(params, name) != sampling_fields[name].default
    )
    return next(requested_keys, "") if family.embeds_guidance else ""
