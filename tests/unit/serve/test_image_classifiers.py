from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.config.serving import SafetyConfig
from dreambooth_ray.errors import ConfigError
from serve.safety import Safety


class Shouting:
    """A prompt classifier of the test's own: the share of capital letters."""

    threshold = 0.5

    def scores(self, text: str) -> dict[str, float]:
        return {"shouting": sum(map(str.isupper, text)) / len(text), "rudeness": 0.1}


class Bluish:
    """An image classifier of the test's own, made from its `model`."""

    category, threshold = "too blue", 0.5

    def __init__(self, model: str | None) -> None:
        self.weight = float(model or 1)

    def score(self, image: Image.Image) -> float:
        return image.convert("RGB").getchannel("B").getextrema()[0] / 255 * self.weight  # type: ignore[operator,return-value]


HERE = "tests.unit.serve.test_image_classifiers"


def test_classifiers_of_other_packages_are_named_in_the_configuration() -> None:
    config = SafetyConfig(
        prompt_classifier=f"{HERE}:Shouting", images=f"{HERE}:Bluish", images_model="0.5"
    )
    safety = Safety(config)
    assert safety.check_prompt("A ROBOT").category == "shouting"
    assert safety.check_prompt("A ROBOT").refused
    assert not safety.check_prompt("a robot").refused
    # The policy goes on beside it.
    assert safety.check_prompt("a naked robot").category == "sexual"
    blue = safety.check_image(Image.new("RGB", (4, 4), (0, 0, 255)))
    assert (blue.category, blue.score, blue.refused) == ("too blue", 0.5, True)


@pytest.mark.parametrize(
    "values",
    [{"images": "no.such.module:Thing"}, {"prompt_classifier": f"{HERE}:Missing"}],
)
def test_classifiers_that_are_not_there_are_named(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"safety.{next(iter(values))}"):
        Safety(SafetyConfig.model_validate(values))


def small_checker(folder: Path, concept_weight: float) -> str:
    """The real checker's class, small, that finds its concepts above `concept_weight`."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    torch.manual_seed(0)
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = side | {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=side, vision_config=vision, projection_dim=8)
    model = StableDiffusionSafetyChecker(config)
    model.concept_embeds_weights.data.fill_(concept_weight)
    model.special_care_embeds_weights.data.fill_(2.0)
    model.save_pretrained(folder / "safety_checker")
    return str(folder)


@pytest.mark.parametrize(("concept_weight", "refused"), [(-2.0, True), (2.0, False)])
def test_stable_diffusions_own_checker(
    tmp_path: Path, concept_weight: float, refused: bool
) -> None:
    model = small_checker(tmp_path, concept_weight)
    safety = Safety(SafetyConfig(images="diffusers", images_model=model))
    result = safety.check_image(Image.effect_noise((64, 64), 80).convert("RGB"))
    assert (result.refused, result.score) == (refused, float(refused))


def test_a_folder_without_a_checker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"safety\.images_model"):
        Safety(SafetyConfig(images="diffusers", images_model=str(tmp_path)))
