import pytest

from dreambooth_ray.config.learning_rate_rules import check_rates
from dreambooth_ray.config.load import load_config, override_config, parse_config
from dreambooth_ray.config.schema import Config

SUBJECT = ("subject.photos=p", "subject.class_noun=dog")


def make_config(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: dog}", "x", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ((), 5e-6),
        (("train.method=lora",), 1e-4),
        (("train.method=kv",), 1e-5),
        (("train.optimizer=prodigy",), 1.0),
        (("train.optimizer=lion",), 1e-6),
        (("train.optimizer=lion", "train.method=lora"), 2e-5),
        (("train.optimizer=adafactor", "train.method=lora"), 1e-4),
        (("train.method=lora", "train.lr=3e-5"), 3e-5),
    ],
)
def test_a_rate_that_is_not_given_goes_with_what_is_trained(
    overrides: tuple[str, ...], rate: float
) -> None:
    assert make_config(*overrides).train.lr == rate


def test_a_recipes_rate_does_not_stay_with_another_method() -> None:
    """2e-6 of all weights, where the recipe says nothing else, moves no adapter."""
    recipe = "stable-diffusion.yaml"
    assert load_config(recipe, [*SUBJECT]).train.lr == 2e-6
    assert load_config(recipe, [*SUBJECT, "train.method=lora"]).train.lr == 1e-4
    assert load_config(recipe, [*SUBJECT, "train.method=full"]).train.lr == 2e-6
    for overrides in (
        ["train.lr=3e-5", "train.method=lora"], ["train.method=lora", "train.lr=3e-5"],
    ):  # fmt: skip
        assert load_config(recipe, [*SUBJECT, *overrides]).train.lr == 3e-5
    assert load_config("toy-robot-lora", [*SUBJECT, "train.method=full"]).train.lr == 5e-6
    stored = load_config(recipe, [*SUBJECT, "train.text_encoder_lr=1e-6"])
    changed = override_config(stored, ["train.method=lora"])
    assert (changed.train.lr, changed.train.text_encoder_lr) == (1e-4, None)
    assert override_config(stored, ["train.steps=9"]).train == stored.train.model_copy(
        update={"steps": 9}
    )


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("train.method=lora", "train.lr=2e-6"), "train.lr=2e-06"),
        (
            ("identifier.kind=learned", "train.unet=false", "train.text_encoder=false"),
            "identifier.lr=5e-06",
        ),
        (("train.lr=2e-6",), ""),
        (("train.method=lora",), ""),
        (("train.method=lora", "train.optimizer=prodigy"), ""),
        (("train.method=lora", "train.optimizer=lion"), ""),
        (("train.method=lora", "train.optimizer=lion", "train.lr=1e-4"), "train.lr=0.0001"),
    ],
)
def test_a_rate_that_can_not_learn_is_named(overrides: tuple[str, ...], key: str) -> None:
    warnings = check_rates(make_config(*overrides))
    assert [w.startswith(key) for w in warnings] == ([True] if key else [])
