import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.evaluation.checkpoint_sampler import is_sample_due

TEXT = "subject: {photos: p, class_noun: robot}"


@pytest.mark.parametrize(
    ("every", "interval", "due"),
    [(10, 10, [10, 20, 30]), (20, 10, [20]), (15, 10, [20, 30]), (5, 10, [10, 20, 30]),
     (10, 100, [32])],
)  # fmt: skip
def test_the_first_checkpoint_at_or_after_a_multiple_is_sampled(
    every: int, interval: int, due: list[int]
) -> None:
    settings = [f"sample.every={every}", f"checkpoint.every={interval}", "train.steps=32"]
    config = parse_config(TEXT, "x", settings)
    checkpoints = [s for s in range(1, 33) if s % interval == 0 or s == 32]
    assert [step for step in checkpoints if is_sample_due(config, step)] == due


def test_workers_sample_where_they_hold_whole_weights() -> None:
    zero = "train.strategy=deepspeed"
    for settings, holds_unsharded_weights in (
        ([], True),
        (["train.strategy=fsdp2"], False),
        ([zero, "train.deepspeed.stage=1"], True),
        ([zero, "train.deepspeed.stage=2", "train.precision=bf16-mixed"], True),
        ([zero, "train.deepspeed.stage=3"], False),
        ([zero, "train.precision=16-mixed", "cluster.gpus=true"], False),
    ):
        assert (
            parse_config(TEXT, "x", settings).train.holds_unsharded_weights
            == holds_unsharded_weights
        )
