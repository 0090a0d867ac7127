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
    yield from _list_methods(config, family)
    yield from _list_flow_losses(config) if family.process == "flow" else _list_losses(config)
    for key, params in (("prior", config.prior), ("sample", config.sample)):
        if "solver" in params.given_values and params.solver not in family.solvers:
            yield f"{key}.solver", params.solver, f"take {', '.join(family.solvers)}"
        is_guided = params.given_values.get("guidance_scale", 1) != 1
        if is_guided and not family.has_guidance:
            yield f"{key}.guidance_scale", params.guidance_scale, "leave it out"
        if name := find_unguided(family, params):
            yield f"{key}.{name}", getattr(params, name), "leave it out"
        if params.clip_skip and not family.can("clip_skip"):
            yield f"{key}.clip_skip", params.clip_skip, "set it 0"
        if params.cache_every > 1 and not family.can("deepcache"):
            yield f"{key}.cache_every", params.cache_every, "set it 1"


def _list_methods(config: Config, family: ModelFamily) -> Iterator[Refusal]:
    train = config.train
    if train.method not in family.methods:
        yield "train.method", train.method, f"take {' or '.join(family.methods)}"
    is_asked = train.text_encoder and "text_encoder" in train.model_fields_set
    if is_asked and not family.trainable_text_encoders:
        yield "train.text_encoder", "true", "set it false: its text encoder stays as it is"
    if config.identifier.kind == "learned" and not family.can("learned"):
        reason = (
            "diffusers' pipeline of it reads no learned word"
            if family.trainable_text_encoders
            else "its text encoder stays as it is"
        )
        yield "identifier.kind", "learned", f"take rare_word: {reason}"


def _list_losses(config: Config) -> Iterator[Refusal]:
    if config.loss.timesteps == "mode":
        yield "loss.timesteps", "mode", "take uniform or logit_normal"
    if config.loss.weighting != "none":
        yield "loss.weighting", config.loss.weighting, "take loss.min_snr_gamma"


def _list_flow_losses(config: Config) -> Iterator[Refusal]:
    loss = config.loss
    if loss.min_snr_gamma is not None:
        yield "loss.min_snr_gamma", loss.min_snr_gamma, "leave it out, or set loss.weighting"
    if loss.zero_terminal_snr:
        yield "loss.zero_terminal_snr", "true", "set it false: it begins in pure noise anyway"


def find_unguided(family: ModelFamily, params: SamplingParams) -> str:
    """The first that is about a prediction without the prompt, of a family that makes none."""
    defaults = SamplingParams.model_fields
    names = ("guidance_rescale", "guidance_interval", "guidance_every")
    asked = (name for name in names if getattr(params, name) != defaults[name].default)
    return next(asked, "") if family.embeds_guidance else ""
