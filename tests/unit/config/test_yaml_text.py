from pathlib import Path
from typing import Any

import pytest

from cluster.fleet_plan import load_fleet
from dreambooth_ray.config.yaml_text import parse_yaml
from dreambooth_ray.errors import ConfigError


def test_aliases_that_multiply_are_refused_before_they_are_read(tmp_path: Path) -> None:
    levels = [f"{name}: &{name} [{', '.join([f'*{inner}'] * 9)}]" for inner, name in
              zip("abcdef", "bcdefg", strict=True)]  # fmt: skip
    text = "\n".join(["recipe: toy-robot", "a: &a [x]", *levels, "subjects: *g"])
    (tmp_path / "subjects.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"aliases .* write out what is meant"):
        load_fleet(tmp_path / "subjects.yaml")


def test_aliases_that_stand_for_more_than_a_float_holds_are_refused() -> None:
    levels = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 400)]
    with pytest.raises(ConfigError, match=r"stand for .*e\+381 values in the place"):
        parse_yaml("\n".join(["a0: &a0 [x]", *levels]), "fleet.yaml", dict)


def test_many_subjects_may_share_what_an_anchor_names() -> None:
    common = "train: &common {lr: 1.0e-4, betas: [0.9, 0.99], steps: 30}"
    rows = [f"s{index}: {{<<: *common, steps: {index}}}" for index in range(500)]
    values = parse_yaml("\n".join([common, *rows]), "it", dict[str, Any])
    assert values["s7"] == {"lr": 1e-4, "betas": [0.9, 0.99], "steps": 7}
