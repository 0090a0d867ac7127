import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cluster.shared_batch_plan import divide_slots_among_workers, group_subjects_for_shared_batches
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.training.slots.shared_batch_rules import find_shared_batch_obstacle

SLOTTED = ("train.method=lora",)


def make_config(*overrides: str) -> Config:
    base = "run_id: one\nsubject: {photos: p, class_noun: robot}"
    return parse_config(base, "x", [*SLOTTED, *overrides])


OWN = (
    "seed=4", "train.lr=1e-3", "train.steps=7", "train.lr_schedule=cosine", "prior.weight=0.5",
    "loss.min_snr_gamma=5", "loss.huber_delta=1", "train.max_grad_norm=0.5", "train.lora.alpha=2",
    "train.lora.rank=3", "train.ema_decay=0.9", "train.flip=true", "subject.identifier=zwx",
    "checkpoint.every=3", "cluster.workers=2", "train.crop=smart", "train.lora.rslora=true",
)  # fmt: skip


def test_what_is_a_runs_own_parts_nobody() -> None:
    configs = {setting: make_config(setting) for setting in OWN}
    plan = group_subjects_for_shared_batches(configs)
    assert [group.subject_ids for group in plan.groups] == [OWN]
    assert plan.groups[0].rank == 8
    assert not plan.obstacles


APART = (
    "model.uri=other", "train.lora.dora=true", "train.resolution=64", "train.batch_size=4",
    "train.precision=bf16-mixed", "prior.count=0", "prior.kind=both",
    "train.gradient_checkpointing=true", 'train.lora.target_modules=["to_q"]',
    "loss.zero_terminal_snr=true", "storage.uri=elsewhere",
    "train.cuda_graphs=false", "cluster.gpus=true", "cluster.max_failures=9", "cluster.wait_s=5",
)  # fmt: skip


@pytest.mark.parametrize("setting", APART)
def test_what_shapes_the_batch_parts_them(setting: str) -> None:
    plan = group_subjects_for_shared_batches(
        {"a": make_config(), "b": make_config(setting), "c": make_config("seed=3")}
    )
    assert [group.subject_ids for group in plan.groups] == [("a", "c"), ("b",)]


# Each run's own beside those of OWN: what it sees, how it is validated, sampled, saved and tracked.
_OWN_KEYS = (
    "run_id", "subject", "subjects", "captions", "prior", "loss", "checkpoint", "tracking",
    "train.images", "train.prompt", "train.lr_warmup_steps", "train.weight_decay",
    "cluster.lease_s", "validation", "sample",
)  # fmt: skip
# Without an effect on any run in slots, as on runs alone: of what is an obstacle, or of nothing
# where adapters of the denoiser alone are trained.
_IDLE_KEYS = (
    "identifier.lr", "train.text_encoder_lr", "train.lora.text_target_modules",
    "train.lora.lokr_factor", "train.deepspeed",
    "choice", "train.bucket_step_px", "train.bucket_max_aspect",
)  # fmt: skip
# The fleet's: refused where they differ, said to mean nothing, or heeded before any slot is taken.
_FLEET_KEYS = ("cluster.address", "cluster.workers", "memory.fit")


def list_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += list_keys(kind, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return keys


def test_every_key_works_in_slots_or_is_refused() -> None:
    """A new key has to be put into one of these lists, or none."""
    obstacles = [setting for settings in OBSTACLES.values() for setting in settings]
    settings = [*OWN, *APART, *obstacles, "train.precision=16-mixed"]
    named = {setting.partition("=")[0] for setting in settings}
    known = {*named, *_OWN_KEYS, *_IDLE_KEYS, *_FLEET_KEYS, "model", "storage"}
    unknown = [
        key
        for key in list_keys(Config)
        if not any(key == name or key.startswith(f"{name}.") for name in known)
    ]
    assert not unknown


OBSTACLES = {
    "train.method=full": ("train.method=full", "train.text_encoder=false"),
    "train.method=kv": ("train.method=kv",),
    "train.text_encoder=true": ("train.text_encoder=true",),
    "train.unet=false": ("train.unet=false", "train.text_encoder=true"),
    "identifier.kind=learned": ("identifier.kind=learned",),
    "train.strategy=fsdp2": ("train.strategy=fsdp2",),
    "train.optimizer=prodigy": ("train.optimizer=prodigy", "train.lr=1"),
    "train.optimizer=lion": ("train.optimizer=lion",),
    "train.lora.kind=loha": ("train.lora.kind=loha",),
    "train.lora.rank_pattern": ("train.lora.rank_pattern={to_q: 4}",),
    "train.lora.alpha_pattern": ("train.lora.alpha_pattern={to_q: 4}",),
    "train.lora.loraplus_lr_ratio": ("train.lora.loraplus_lr_ratio=4",),
    "train.accumulate=2": ("train.accumulate=2",),
    "train.lora.dora with train.precision=bf16-mixed": (
        "train.lora.dora=true", "train.precision=bf16-mixed",
    ),
    "train.weight_dtype=bfloat16": (
        "train.weight_dtype=bfloat16", "train.precision=bf16-mixed",
    ),
    "train.mask_background=0.1": ("train.mask_background=0.1",),
    "train.mask_background_target=output": (
        "train.mask_background_target=output", "train.mask_background=0.1",
    ),
    "train.buckets=true": ("train.buckets=true",),
    "train.resolution=[256, 512]": ("train.resolution=[512, 256]",),
    "train.compile=blocks": ("train.compile=blocks",),
    "train.deterministic=true": ("train.deterministic=true",),
    "model.quantization=int8": ("model.quantization=int8",),
    "choice.rule=best": ("choice.rule=best",),
    "tracking.loggers=['wandb']": ("tracking.loggers=[wandb, csv]",),
}  # fmt: skip


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_slots_can_t_do_is_named(obstacle: str) -> None:
    config = make_config(*OBSTACLES[obstacle])
    assert find_shared_batch_obstacle(config) == obstacle
    assert group_subjects_for_shared_batches({"a": config}).obstacles == {"a": obstacle}


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 200))
def test_workers_divide_the_slots_evenly(slots: int, workers: int, subjects: int) -> None:
    shares = divide_slots_among_workers(slots, workers, subjects)
    assert 1 <= len(shares) <= min(workers, subjects)
    assert max(shares) - min(shares) <= 1
    assert sum(shares) <= slots
    # Nobody waits for a slot that is there, and less than half of them are in vain.
    assert sum(shares) == slots or sum(shares) >= subjects
    assert all(share < 2 * -(-subjects // len(shares)) for share in shares)


def test_one_subject_more_or_less_leaves_the_batch_as_it_is() -> None:
    assert divide_slots_among_workers(32, 1, 29) == divide_slots_among_workers(32, 1, 32) == [32]
    assert divide_slots_among_workers(32, 2, 29) == [16, 16]
    assert divide_slots_among_workers(32, 1, 3) == [4]
