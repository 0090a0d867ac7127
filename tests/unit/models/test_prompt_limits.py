from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.prompt_limits import check_prompts
from tests.families.tiny_models import build_tiny

# Of the tiny models' alphabet each byte is a token; the marks of a message are 19, or 25 where the
# answer is told not to reason.
LIMITS = {"z-image": 512 - 19, "flux2-klein": 512 - 25}


@pytest.mark.parametrize("name", LIMITS)
def test_captions_that_a_model_can_not_take_whole_are_refused(name: str, tmp_path: Path) -> None:
    directory = build_tiny(name, tmp_path / name)
    whole = "x" * LIMITS[name]
    check_prompts(directory, [("prior.prompt", "a robot"), ("a.png", whole)])
    with pytest.raises(ConfigError, match=r"a.png: the prompt 'xxx.* takes 513 tokens.* reads 512"):
        check_prompts(directory, [("prior.prompt", "a robot"), ("a.png", f"{whole}x")])


def test_a_model_that_takes_any_length_takes_them(toy_model: Path) -> None:
    check_prompts(toy_model, [("a.png", "x" * 5000)])
