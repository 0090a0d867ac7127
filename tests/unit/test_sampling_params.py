import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.sampling_params import SamplingParams, build_sampling_params
from dreambooth_ray.errors import ConfigError
from serve.api_messages import Receipt

ROOT = Path(__file__).parents[2]


def test_a_parameter_that_is_added_reaches_the_engine_from_everywhere() -> None:
    command = [sys.executable, "-m", "tests.unit.added_param"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_the_page_takes_all_parameters_of_a_receipt() -> None:
    script = (ROOT / "serve" / "page" / "gallery.js").read_text()
    (names,) = re.findall(r"OTHERS = new Set\(\[(.*?)\]\)", script, re.DOTALL)
    others = set(re.findall(r'"(\w+)"', names))
    assert Receipt.model_fields.keys() - others == SamplingParams.model_fields.keys()


def test_every_parameter_is_described() -> None:
    assert [n for n, field in SamplingParams.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["prior.solver=magic"], r"prior\.solver='magic': .*dpmpp_2m"),
        (["prior.num_inference_steps=1001"], r"prior\.num_inference_steps=1001"),
        (
            ["prior.solver=euler", "prior.eta=0.5"],
            r"prior\.eta=0\.5: is for solvers ddim, tcd, not euler",
        ),
        (["sample.karras=true"], r"sample\.karras=True: is for solvers euler, dpmpp_2m, not ddim"),
        (["sample.guidance_interval=[1, 0]"], r"sample\.guidance_interval=.*start must be below"),
    ],
)
def test_a_configuration_refuses_what_the_engine_would(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config("subject: {photos: p, class_noun: robot}", "x", overrides)


@pytest.mark.parametrize("written", [[0.2, 0.8], "0.2, 0.8", "[0.2, 0.8]", "(0.2, 0.8)"])
def test_an_interval_may_be_written_as_text(written: Any) -> None:
    params = build_sampling_params({"guidance_interval": written})
    assert params == SamplingParams(guidance_interval=(0.2, 0.8))


def test_an_interval_that_is_no_pair_is_refused() -> None:
    for written in ("", "0.2", "0.2, 0.5, 0.8", "a, b", 1, None):
        with pytest.raises(ConfigError, match="guidance_interval"):
            build_sampling_params({"guidance_interval": written})
