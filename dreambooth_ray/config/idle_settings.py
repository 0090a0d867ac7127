"""Settings that change nothing beside others: a person who gives one expects that it does."""

from collections.abc import Callable
from typing import NamedTuple

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.section import Section


class _IdleSettingRule(NamedTuple):
    """keys of a section that only matter where another setting is otherwise

    section: finds it; prefix: its name; needs: what they need, to be told
    """

    prefix: str
    keys: tuple[str, ...]
    section: Callable[[Config], Section]
    is_idle: Callable[[Config], bool]
    needs: str


# A run is stored with its model's own, whatever its method.
_FILLED_IN = {"target_modules", "text_target_modules"}
_RULES = (
    _IdleSettingRule(
        "train.lora", (), lambda c: c.train.lora, lambda c: c.train.method != "lora",
        "train.method=lora",
    ),
    _IdleSettingRule(
        "train.deepspeed", (), lambda c: c.train.deepspeed,
        lambda c: c.train.strategy != "deepspeed", "train.strategy=deepspeed",
    ),
    _IdleSettingRule(
        "train", ("bucket_step_px", "bucket_max_aspect"), lambda c: c.train,
        lambda c: not c.train.buckets, "train.buckets=true",
    ),
    _IdleSettingRule(
        "prior", ("output_weight", "captions"), lambda c: c.prior,
        lambda c: not c.prior.keeps_output, "prior.kind=output or both",
    ),
    _IdleSettingRule(
        "identifier", ("lr",), lambda c: c.identifier, lambda c: c.identifier.kind != "learned",
        "identifier.kind=learned",
    ),
    _IdleSettingRule(
        "validation", ("held_out", "timesteps", "min_delta"), lambda c: c.validation,
        lambda c: not c.validation.every, "validation.every above 0",
    ),
    _IdleSettingRule(
        "choice", ("drift", "max_drift", "max_evaluations", "min_gain"), lambda c: c.choice,
        lambda c: c.choice.rule == "last", "choice.rule=best",
    ),
    _IdleSettingRule(
        "checkpoint", ("best",), lambda c: c.checkpoint,
        lambda c: (c.checkpoint.best or "").startswith("val_") and not c.validation.every,
        "validation.every above 0",
    ),
)  # fmt: skip


def find_idle_settings(config: Config) -> list[str]:
    """A line for each setting that is not its default and has no effect, its key first."""
    warnings = []
    for idle_rule in _RULES:
        if not idle_rule.is_idle(config):
            continue
        section = idle_rule.section(config)
        fields = type(section).model_fields
        for key in idle_rule.keys or sorted(fields.keys() - _FILLED_IN):
            value = getattr(section, key)
            if value != fields[key].get_default(call_default_factory=True):
                warnings.append(
                    f"{idle_rule.prefix}.{key}={value} changes nothing: it needs {idle_rule.needs}"
                )
    num_warmup_steps = config.train.lr_warmup_steps
    if num_warmup_steps >= config.train.steps:
        warnings.append(
            f"train.lr_warmup_steps={num_warmup_steps} is no less than "
            f"train.steps={config.train.steps}: the rate never reaches train.lr"
        )
    return warnings
