from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.prompt_limits import check_prompts
from tests.families.tiny_models import build_tiny

# Of the tiny models' alphabet each byte is a token; the marks of a message are 19, or 25 where the
# answer is told not to reason. T5 marks where a word begins and where the text ends.
LIMITS = {
    "z-image": (512, 19),
    "flux2-klein": (512, 25),
    "flux1-dev": (512, 2),
    "flux1-schnell": (256, 2),
    "sd3": (256, 2),
}


@pytest.mark.parametrize("name", LIMITS)
def test_captions_that_a_model_can_not_take_whole_are_refused(name: str, tmp_path: Path) -> None:
    directory = build_tiny(name, tmp_path / name)
    limit, num_marks = LIMITS[name]
    whole = "x" * (limit - num_marks)
    check_prompts(directory, [("prior.prompt", "a robot"), ("a.png", whole)])
    words = rf"a.png: the prompt 'xxx.* takes {limit + 1} tokens.* reads {limit}"
    with pytest.raises(ConfigError, match=words):
        check_prompts(directory, [("prior.prompt", "a robot"), ("a.png", f"{whole}x")])


def test_a_model_that_takes_any_length_takes_them(toy_model: Path, tmp_path: Path) -> None:
    for directory in (toy_model, build_tiny("sd3-without-t5", tmp_path / "model")):
        check_prompts(directory, [("a.png", "x" * 5000)])
