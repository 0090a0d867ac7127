"""Recipes by memory ask for what their family has."""

import pytest

from dreambooth_ray.config.learning_rate_rules import check_rates
from dreambooth_ray.config.load import list_recipe_names, load_config
from dreambooth_ray.models.families import (
    chroma,
    flux1,
    flux2_dev,
    flux2_klein,
    krea2,
    qwen_image,
    sana,
    stable_diffusion_3,
    z_image,
)
from dreambooth_ray.models.family_support import check_support
from dreambooth_ray.models.model_defaults import fill_model_defaults

# By the beginning of their names: the family, whose model it is, and its guidance.
FAMILIES = {
    "chroma": (chroma.FAMILY, "lodestones/Chroma1-HD", 5.0),
    "flux1": (flux1.FAMILY, "black-forest-labs/FLUX.1-dev", 3.5),
    "flux2-dev": (flux2_dev.FAMILY, "black-forest-labs/FLUX.2-dev", 4.0),
    "flux2-klein": (flux2_klein.FAMILY, "black-forest-labs/FLUX.2-klein-base-", 4.0),
    "krea2": (krea2.FAMILY, "krea/Krea-2-Raw", 5.5),
    "qwen-image": (qwen_image.FAMILY, "Qwen/Qwen-Image", 4.0),
    "sana": (sana.FAMILY, "Efficient-Large-Model/Sana_", 4.5),
    "sd3": (stable_diffusion_3.FAMILY, "stabilityai/stable-diffusion-3", 7.0),
    "z-image": (z_image.FAMILY, "Tongyi-MAI/Z-Image", 5.0),
}
RECIPES = [
    (name, prefix) for prefix in FAMILIES for name in list_recipe_names() if name.startswith(prefix)
]


def test_every_family_has_a_recipe() -> None:
    assert {prefix for _, prefix in RECIPES} == set(FAMILIES)


@pytest.mark.parametrize(("name", "prefix"), RECIPES)
def test_a_recipe_asks_for_what_its_family_has(name: str, prefix: str) -> None:
    family, uri, guidance_scale = FAMILIES[prefix]
    config = load_config(name, ["subject.photos=p", "subject.class_noun=dog"])
    assert config.model.uri.startswith(uri)
    check_support(config, family)
    assert fill_model_defaults(config, family).prior.guidance_scale == guidance_scale
    assert check_rates(config) == []
