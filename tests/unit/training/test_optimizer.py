from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.optimizer import (
    ExponentialMovingAverage,
    RateSchedule,
    make_optimizer,
    parameter_groups,
)
from dreambooth_ray.training.required_packages import check_packages


def config_of(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


def test_warm_up_rises_linearly_to_one() -> None:
    assert [RateSchedule("constant", 3, 9)(s) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert RateSchedule("constant", 0, 9)(0) == 1.0


def test_rates_fall_to_zero_after_the_last_step() -> None:
    linear = [RateSchedule("linear", 2, 6)(s) for s in range(8)]
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0, 0])
    cosine = [RateSchedule("cosine", 0, 4)(s) for s in range(5)]
    assert cosine == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_weights_are_grouped_by_rate(tiny_model: Path) -> None:
    config = config_of(
        "train.text_encoder_lr=1e-6", "identifier.kind=learned", "identifier.lr=1e-3"
    )
    parts = load_components(tiny_model)
    apply_train_method(config, parts)
    module = DreamBoothModule(config, parts)
    groups = {g["lr"]: g for g in parameter_groups(config, module)}
    assert set(groups) == {5e-6, 1e-6, 1e-3}
    assert len(groups[5e-6]["params"]) == len(list(module.denoiser.parameters()))
    assert [tuple(p.shape) for p in groups[1e-3]["params"]] == [(1, 32)]
    assert groups[1e-3]["weight_decay"] == 0


def test_prodigy_raises_its_own_rate() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(8, 1)
    config = config_of("train.optimizer=prodigy", "train.lr=1")
    optimizer = make_optimizer(config, module)
    before = optimizer.param_groups[0]["d"]
    for _ in range(30):
        optimizer.zero_grad()
        (module(torch.randn(16, 8)) - 3).square().mean().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["d"] > 10 * before


def test_half_precision_steps_leave_unscaling_to_clipping() -> None:
    module = torch.nn.Linear(2, 1)
    half = make_optimizer(config_of("train.precision=16-mixed", "cluster.gpus=true"), module)
    assert (half.defaults["fused"], make_optimizer(config_of(), module).defaults["fused"]) == (
        False,
        True,
    )


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, .*pip install"):
        check_packages(config_of("train.optimizer=adamw8bit", "cluster.gpus=true"))
    for name in ("wandb", "mlflow"):
        with pytest.raises(ConfigError, match=rf"{name}, which is not installed: .*\[{name}\]"):
            check_packages(config_of(f"tracking.loggers=[{name}]"))
    check_packages(config_of())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.precision=16-mixed"], "16-mixed needs a GPU"),
        (["train.optimizer=adamw8bit"], "needs CUDA"),
        (["train.optimizer=prodigy", "train.lr=1e-6"], "set train.lr=1"),
        (["train.optimizer=prodigy", "train.lr=1", "train.text_encoder_lr=1"], "no train.text_enc"),
        (["train.optimizer=prodigy", "train.lr=1", "identifier.lr=1"], "one rate for all"),
        (["train.accumulate=3"], "train.accumulate=3 can't part a worker's 2"),
    ],
)
def test_what_can_not_be_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(*overrides)


def test_a_budget_of_images_is_a_number_of_steps() -> None:
    assert config_of("train.images=102").train.steps == 26
    assert config_of("train.images=102", "prior.count=0").train.steps == 51
    with pytest.raises(ConfigError, match="25 steps of 4 images"):
        text = "subject: {photos: p, class_noun: robot}\ntrain: {steps: 7, images: 100}"
        parse_config(text, "x", [])
    assert config_of("train.precision=32").train.precision == "32"


def test_the_average_forgets_where_it_began() -> None:
    average = ExponentialMovingAverage(0.999)
    for step in range(1, 400):
        average.update({"w": torch.tensor([1.0 if step > 20 else 100.0])}, step)
    # With a fixed decay of 0.999, 68 % of the first value would be left.
    assert 1 < float(average.weights["w"]) < 1.1
