"""Each kind of adapter: it trains, resumes bit for bit, and is counted in the memory of a step."""

from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.run_changes import find_config_changes, find_resume_obstacles
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.optimizer import parameter_groups
from tests.unit.training.fitted import Fitted

# Attention, the feed-forward and convolutions.
WIDE = "train.lora.target_modules=[to_q, to_out.0, ff.net.2, conv1, conv_shortcut]"
KINDS = {
    "loha": ("train.lora.kind=loha", WIDE),
    "lokr": ("train.lora.kind=lokr", "train.lora.lokr_factor=4", WIDE),
    "rslora": ("train.lora.rslora=true", "train.lora.alpha=3"),
    "loraplus": ("train.lora.loraplus_lr_ratio=16",),
    "patterns": ("train.lora.rank_pattern={conv1: 2, to_q: 6}", "train.lora.rank=4",
                 "train.lora.alpha_pattern={'mid_block.*to_q': 7}", WIDE),
}  # fmt: skip


def make_config(*overrides: str) -> Config:
    text = "subject: {photos: p, class_noun: robot}"
    return parse_config(text, "x", ["train.method=lora", *overrides])


@pytest.fixture(scope="module")
def base_losses(tiny_model: Path, photos: Path, priors: Store) -> list[float]:
    """Of four steps that change next to nothing."""
    overrides = ("train.method=lora", "train.text_encoder=true", "train.steps=4", "train.lr=1e-12")
    return Fitted(tiny_model, photos, priors, *overrides).losses()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_adapter_goes_on_bit_for_bit(
    tiny_model: Path,
    photos: Path,
    priors: Store,
    tmp_path: Path,
    kind: str,
    base_losses: list[float],
) -> None:
    state = tmp_path / "state.ckpt"
    overrides = ("train.method=lora", "train.text_encoder=true", "train.steps=4", *KINDS[kind])
    full_run = Fitted(tiny_model, photos, priors, *overrides, save=state)
    resumed = Fitted(tiny_model, photos, priors, *overrides, resume=state)
    assert resumed.watch.records == full_run.watch.records[2:]
    assert all(torch.equal(w, resumed.weights[n]) for n, w in full_run.weights.items())
    assert full_run.losses()[0] == base_losses[0], "it does not begin as the base model"
    assert full_run.losses()[-1] < base_losses[-1]


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_its_weights_count_in_the_prediction_of_memory(tiny_model: Path, kind: str) -> None:
    config = make_config("train.resolution=64", *KINDS[kind])
    parts = load_components(tiny_model)
    apply_train_method(config, parts)
    num_trained = sum(p.numel() for p in parts.unet.parameters() if p.requires_grad)
    footprint = estimate_training_footprint(config, tiny_model)
    assert footprint.states_bytes == 12 * num_trained
    assert footprint.activations_bytes > 0


def test_the_second_matrix_has_a_rate_of_its_own(tiny_model: Path) -> None:
    config = make_config(*KINDS["loraplus"], "train.text_encoder=true", "train.lora.dora=true",
                         "train.text_encoder_lr=5e-5")  # fmt: skip
    parts = load_components(tiny_model)
    apply_train_method(config, parts)
    module = DreamBoothModule(config, parts)
    names = {id(p): n for n, p in module.named_parameters()}
    for group in parameter_groups(config, module):
        group_names = [names[id(p)] for p in group["params"]]
        rate = 1e-4 if group_names[0].startswith("unet") else 5e-5
        is_raised = ".lora_B." in group_names[0]
        assert group["lr"] == pytest.approx(rate * (16 if is_raised else 1))
        assert {".lora_B." in name for name in group_names} == {is_raised}
    rates = [group["lr"] for group in parameter_groups(config, module)]
    assert rates[:2] == [1e-4, 5e-5], "metrics find the rates of parts by their place"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("kind=loha", "dora=true"), r"train\.lora\.dora=true is for train\.lora\.kind=lora"),
        (("kind=lokr", "rslora=true"), r"train\.lora\.rslora=true is for"),
        (("kind=lokr", "loraplus_lr_ratio=4"), r"train\.lora\.loraplus_lr_ratio is for"),
        (("lokr_factor=4",), r"train\.lora\.lokr_factor=4 is for train\.lora\.kind=lokr"),
        (("kind=boft",), r"train\.lora\.kind"),
        (("rank_pattern={conv1: 0}",), r"rank_pattern"),
        (("rank_pattern={'con[': 4}",), r"'con\[' is no regular expression"),
        (("loraplus_lr_ratio=0.5",), "loraplus_lr_ratio"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(*(f"train.lora.{override}" for override in overrides))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.optimizer=prodigy", "train.lr=1", "train.lora.loraplus_lr_ratio=4"),
         "prodigy takes one rate for all"),
        (("train.lora.kind=loha", "model.quantization=int8", "cluster.gpus=true"),
         r"train\.lora\.kind=loha is for layers that are not quantized"),
    ],
)  # fmt: skip
def test_what_other_sections_can_not_have_is_refused(
    overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("rank=4096",), r"train\.lora\.rank=4096 is above 32, the width of down_blocks"),
        (("rank_pattern={to_k: 33}",), r"train\.lora\.rank_pattern\.to_k=33 is above 32"),
        (("rank_pattern={conv9: 4}",), r"rank_pattern: 'conv9' matches no adapted layer"),
        (("alpha_pattern={conv9: 4}",), r"alpha_pattern: 'conv9' matches no adapted layer"),
        (("rank=32",), ""),
        (("rank=64", "rank_pattern={'.*': 32}"), ""),
    ],
)
def test_ranks_are_held_against_the_layers_widths(
    tiny_model: Path, overrides: tuple[str, ...], words: str
) -> None:
    config = make_config(*(f"train.lora.{override}" for override in overrides))
    if not words:
        check_training_settings(config, tiny_model)
        return
    with pytest.raises(ConfigError, match=words) as raised:
        check_training_settings(config, tiny_model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        (("train.lora.kind=loha",), True),
        (("train.lora.rank_pattern={to_q: 4}",), True),
        (("train.lora.loraplus_lr_ratio=8",), True),
        (("train.lora.alpha_pattern={to_q: 4}",), False),
    ],
)
def test_what_a_checkpoint_does_not_fit_is_refused_on_resume(
    changes: tuple[str, ...], is_refused: bool
) -> None:
    stored, current = make_config(), make_config(*changes)
    found = find_config_changes(stored.model_dump(mode="json"), current.model_dump(mode="json"))
    assert bool(find_resume_obstacles(stored, current, found, (), 2, 4)) == is_refused
