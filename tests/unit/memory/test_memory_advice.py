from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.memory.memory_advice import find_fitting_settings
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from tests.footprints import MIB, estimate_by_formula, use_formula


def make_config(*overrides: str) -> Config:
    return parse_config(
        "subject: {photos: p, class_noun: robot}", "x",
        ["train.resolution=64", "train.batch_size=4", *overrides],
    )  # fmt: skip


def test_the_cheapest_settings_that_fit_are_named(tiny_model: Path) -> None:
    config = make_config("cluster.gpus=true")
    needed = estimate_training_footprint(config, tiny_model).total_bytes
    fitting = find_fitting_settings(config, tiny_model, needed - 1)
    assert fitting is not None
    assert fitting.settings == ("train.precision=bf16-mixed",)
    assert fitting.needed_bytes < needed
    smaller = find_fitting_settings(config, tiny_model, needed // 2)
    assert smaller is not None
    assert smaller.settings[0] == "train.precision=bf16-mixed"
    assert len(smaller.settings) > 1
    assert smaller.config == make_config("cluster.gpus=true", *smaller.settings)
    changed_bytes = estimate_training_footprint(smaller.config, tiny_model).total_bytes
    assert changed_bytes == smaller.needed_bytes <= needed // 2


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> None:
    use_formula(monkeypatch)


FULL = ("train.batch_size=4", "cluster.gpus=true")


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize(
    ("limit_mib", "settings"),
    [
        (5600, ()),
        (5400, ("train.precision=bf16-mixed",)),
        (4200, ("train.precision=bf16-mixed", "train.cuda_graphs=false")),
        (3000, ("train.precision=bf16-mixed", "train.cuda_graphs=false",
                "train.optimizer=adamw8bit")),
        (2500, ("train.precision=bf16-mixed", "train.optimizer=adamw8bit", "train.accumulate=2")),
        (2260, ("train.precision=bf16-mixed", "train.optimizer=adamw8bit", "train.accumulate=4")),
        (1300, ("train.precision=bf16-mixed", "train.optimizer=adamw8bit", "train.accumulate=4",
                "train.text_encoder=false")),
        (720, ("train.precision=bf16-mixed", "train.accumulate=2", "train.method=lora")),
        (300, ("train.precision=bf16-mixed", "train.accumulate=4",
               "train.gradient_checkpointing=true", "train.method=lora")),
        (100, None),
    ],
)  # fmt: skip
def test_settings_are_named_cheapest_first(
    limit_mib: int, settings: tuple[str, ...] | None
) -> None:
    fitting = find_fitting_settings(make_config(*FULL), Path(), limit_mib * MIB)
    assert (fitting.settings if fitting else None) == settings


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize("limit_mib", range(300, 5600, 250))
def test_each_setting_that_is_named_is_needed(limit_mib: int) -> None:
    config, limit = make_config(*FULL), limit_mib * MIB
    fitting = find_fitting_settings(config, Path(), limit)
    assert fitting is not None
    assert estimate_by_formula(fitting.config, Path()).total_bytes == fitting.needed_bytes <= limit
    for left_out in fitting.settings[1:-1]:
        others = [setting for setting in fitting.settings if setting != left_out]
        try:
            changed = make_config(*FULL, *others)
        except ConfigError:
            continue
        assert estimate_by_formula(changed, Path()).total_bytes > limit


@pytest.mark.usefixtures("formula")
def test_packages_that_are_not_there_are_done_without() -> None:
    config, limit = make_config(*FULL, "train.precision=bf16-mixed"), 3000 * MIB
    with_packages = find_fitting_settings(config, Path(), limit)
    without = find_fitting_settings(config, Path(), limit, lambda package: False)
    assert with_packages is not None
    assert without is not None
    assert "train.optimizer=adamw8bit" in with_packages.settings
    assert not any("8bit" in s or "quantization" in s for s in without.settings)


@pytest.mark.parametrize("setting", ["train.ema_decay=0.99", "train.optimizer=prodigy"])
def test_states_of_the_optimizer_count(setting: str, tiny_model: Path) -> None:
    more = ["train.lr=1"] if "prodigy" in setting else []
    with_more = estimate_training_footprint(make_config(setting, *more), tiny_model).states_bytes
    assert with_more > estimate_training_footprint(make_config(), tiny_model).states_bytes
