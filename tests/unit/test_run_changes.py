"""Each key of a run that is trained in part is taken up, or refused with its reason."""

from pathlib import Path

import pytest

from dreambooth_ray.config.load import list_config_keys, override_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.run_changes import FIXED_KEYS, find_config_changes, find_resume_obstacles

BASE = """
subject: {photos: p, class_noun: robot}
train: {steps: 8, batch_size: 2}
prior: {count: 8}
"""


def describe_obstacles(
    *overrides: str,
    base: tuple[str, ...] = (),
    committed: int = 4,
    last: int | None = None,
    data_differences: tuple[str, ...] = (),
) -> str:
    stored = parse_config(BASE, "x", list(base))
    current = override_config(stored, list(overrides))
    changes = find_config_changes(stored.model_dump(mode="json"), current.model_dump(mode="json"))
    assert changes or data_differences, overrides
    last_step = current.train.steps if last is None else last
    return "; ".join(
        find_resume_obstacles(stored, current, changes, data_differences, committed, last_step)
    )


LORA = ("train.method=lora",)
WORD = ("identifier.kind=learned",)
REFUSED: list[tuple[tuple[str, ...], str, str]] = [
    ((), "train.method=lora", "hold the weights that were trained so far"),
    ((), "train.text_encoder=false", "hold the weights"),
    (LORA, "train.lora.rank=4", "hold the weights"),
    (LORA, "train.lora.dora=true", "hold the weights"),
    (LORA, "train.lora.target_modules=[to_q]", "hold the weights"),
    ((), "identifier.kind=learned", "hold the weights"),
    ((), "train.strategy=fsdp2", "sharded"),
    ((), "train.batch_size=4", "are counted by it"),
    ((), "prior.count=0", "are counted by it"),
    ((), "prior.kind=output", "prior.kind was 'images' and is 'output': steps and images are"),
    (("prior.kind=output",), "prior.kind=images", "are counted by it"),
    (("train.strategy=deepspeed",), "train.deepspeed.stage=3", "sharded"),
    (("train.strategy=deepspeed",), "train.precision=bf16-mixed", "sharded"),
    ((), "train.text_encoder_lr=1e-3", "rates that were one are several now"),
    ((*WORD, "identifier.lr=1e-3"), "identifier.lr=null", ""),
    (("train.text_encoder_lr=1e-3",), "train.lr=1e-3", "the other way round"),
]


@pytest.mark.parametrize(("base", "override", "said"), REFUSED)
def test_what_a_checkpoint_does_not_fit_is_refused(
    base: tuple[str, ...], override: str, said: str
) -> None:
    obstacles = describe_obstacles(override, base=base)
    assert said in obstacles
    if said:
        assert override.partition("=")[0] in obstacles
        assert "another run_id" in obstacles


TAKEN_UP: list[tuple[tuple[str, ...], str]] = [
    ((), "train.steps=9"),
    ((), "train.steps=4"),
    ((), "train.lr=1e-3"),
    ((), "train.lr_schedule=cosine"),
    ((), "train.weight_decay=0.5"),
    (("train.text_encoder_lr=1e-3",), "train.text_encoder_lr=2e-3"),
    ((), "train.ema_decay=0.9"),
    ((), "train.precision=bf16-mixed"),
    ((), "train.deepspeed.stage=3"),
    ((), "train.lora.rank=4"),
    ((), "prior.count=6"),
    ((), "prior.kind=both"),
    (("prior.kind=both",), "prior.kind=images"),
    ((), "prior.weight=0.5"),
    ((), "seed=3"),
    ((), "subject.identifier=xyz"),
    (LORA, "train.lora.alpha=2"),
    (LORA, "train.lora.text_target_modules=[q_proj]"),
]


@pytest.mark.parametrize(("base", "override"), TAKEN_UP)
def test_what_is_read_anew_may_change(base: tuple[str, ...], override: str) -> None:
    assert describe_obstacles(override, base=base) == ""


def test_fewer_steps_than_were_made_are_refused() -> None:
    said = describe_obstacles("train.steps=60", committed=150)
    assert "train.steps=60: the run is at step 150 already" in said


@pytest.mark.parametrize("override", ["train.lr=1e-3", "seed=3", "subject.class_noun=dog"])
def test_what_no_step_would_take_up_is_refused(override: str) -> None:
    said = describe_obstacles(override, committed=8)
    assert f"{override.partition('=')[0]} was" in said and "raise train.steps" in said
    assert describe_obstacles(override, "train.steps=9", committed=8) == ""


@pytest.mark.parametrize("override", ["subject.name=rex", "choice.rule=best", "subject.photos=q"])
def test_what_needs_no_step_may_change_at_the_end(override: str) -> None:
    assert describe_obstacles(override, committed=8) == ""


def test_a_run_that_ended_early_goes_on_only_with_its_cause_gone() -> None:
    said = describe_obstacles("train.steps=99", committed=6, last=6)
    assert "the run is at its end, step 6" in said and "validation.patience" in said


def test_other_photographs_need_further_steps() -> None:
    differences = ("subject.photos: others",)
    assert "subject.photos: others: the run is at its end" in describe_obstacles(
        committed=8, data_differences=differences
    )
    assert describe_obstacles(committed=4, data_differences=differences) == ""


VALUES = {
    "int": "3", "float": "0.5", "bool": "true", "str": "other",
}  # fmt: skip


def test_every_key_has_an_answer() -> None:
    """A key is compared at all: none can change unseen, but those of machines and storage."""
    stored = parse_config(BASE, "x", [])
    num_tried = 0
    for key in list_config_keys(Config):
        if key.split(".")[0] in ("cluster", "storage", "checkpoint", "run_id"):
            continue
        for value in VALUES.values():
            try:
                current = override_config(stored, [f"{key}={value}"])
            except ConfigError:
                continue
            changes = find_config_changes(
                stored.model_dump(mode="json"), current.model_dump(mode="json")
            )
            if changes:
                num_tried += 1
                assert all(change.key and str(change) for change in changes)
                find_resume_obstacles(stored, current, changes, (), 4, current.train.steps)
                break
    assert num_tried > 40


def test_the_page_on_training_names_all_that_can_not_change() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/training.md").read_text()
    keys = {*FIXED_KEYS, "prior.count", "prior.kind", "train.precision", "subjects"}
    (line,) = [line for line in page.splitlines() if line.startswith("- What the checkpoints")]
    missing = [
        key
        for key in keys
        if not any(f"`{name}`" in line for name in (key, key.rpartition(".")[0]))
    ]
    assert not missing
