"""What a family says that it can, its functions can."""

from dataclasses import replace

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families import flux2_klein, stable_diffusion
from dreambooth_ray.models.family import list_families


def test_a_family_that_trains_text_encoders_has_functions_for_it() -> None:
    family = stable_diffusion.FAMILY
    with_encoders = replace(flux2_klein.FAMILY, text_encoders=family.text_encoders)
    with pytest.raises(TypeError, match=r"Flux2KleinFunctions of .* is no TextTraining"):
        with_encoders.load_functions()


def test_a_family_with_a_longest_prompt_has_a_function_for_it() -> None:
    with pytest.raises(TypeError, match="is no PromptLimitFunctions"):
        replace(stable_diffusion.FAMILY, max_prompt_tokens=77).load_functions()


def test_what_trains_text_encoders_is_there_where_there_are_such() -> None:
    for family in list_families():
        functions = family.load_functions()
        if family.trainable_text_encoders:
            assert functions.text_training is functions
            continue
        with pytest.raises(ConfigError, match=f"{family.title} trains no text encoder"):
            functions.text_training  # noqa: B018
