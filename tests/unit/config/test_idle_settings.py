"""Settings without effect are named."""

from pathlib import Path

import pytest

from dreambooth_ray.config.idle_settings import find_idle_settings
from dreambooth_ray.config.load import dump_config, load_config, parse_config
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults

RECIPES = Path(__file__).parents[3] / "dreambooth_ray" / "recipes"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["train.lora.rank=4"], "train.lora.rank=4"),
        (["train.lora.kind=loha"], "train.lora.kind=loha"),
        (["train.deepspeed.stage=3"], "train.deepspeed.stage=3"),
        (["train.bucket_step_px=16"], "train.bucket_step_px=16"),
        (["prior.output_weight=2"], "prior.output_weight=2.0"),
        (["prior.captions=class"], "prior.captions=class"),
        (["identifier.lr=1e-3"], "identifier.lr=0.001"),
        (["validation.held_out=1"], "validation.held_out=1"),
        (["checkpoint.best=val_loss"], "checkpoint.best=val_loss"),
        (["train.steps=10", "train.lr_warmup_steps=10"], "train.lr_warmup_steps=10"),
    ],
)
def test_a_setting_without_effect_is_named_also_on_resume(overrides: list[str], key: str) -> None:
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", overrides)
    (line,) = find_idle_settings(config)
    assert line.startswith(f"{key} ")
    assert find_idle_settings(parse_config(dump_config(config), "x", [])) == [line]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.method=lora", "train.lora.rank=4"],
        ["train.buckets=true", "train.resolution=64", "train.bucket_step_px=16"],
        ["prior.kind=both", "prior.output_weight=2", "prior.captions=class"],
        ["identifier.kind=learned", "identifier.lr=1e-3"],
        ["validation.every=5", "validation.held_out=1", "checkpoint.best=val_loss"],
        ["checkpoint.best=loss"],
        ["train.strategy=deepspeed", "train.deepspeed.stage=1"],
        [],
    ],
)
def test_nothing_is_said_of_settings_that_work(overrides: list[str], toy_model: Path) -> None:
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", overrides)
    assert find_idle_settings(config) == []
    assert find_idle_settings(fill_model_defaults(config, find_family(toy_model))) == []


@pytest.mark.parametrize("recipe", sorted(p.name for p in RECIPES.glob("*.yaml")))
def test_shipped_recipes_have_none(recipe: str) -> None:
    assert (
        find_idle_settings(load_config(recipe, ["subject.photos=p", "subject.class_noun=x"])) == []
    )
