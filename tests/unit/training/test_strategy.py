from pathlib import Path

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.training.strategy import DirectCheckpointIO, count_threads


def test_a_state_written_straight_is_read_as_lightning_reads_its_own(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {"weights": {"a": shared, "b": shared[:3]}, "global_step": 7}
    DirectCheckpointIO().save_checkpoint(state, tmp_path / "new" / "ours")
    TorchCheckpointIO().save_checkpoint(state, tmp_path / "theirs")
    ours, theirs = (
        TorchCheckpointIO().load_checkpoint(tmp_path / k) for k in ("new/ours", "theirs")
    )
    assert ours["global_step"] == theirs["global_step"] == 7
    for name in ("a", "b"):
        assert torch.equal(ours["weights"][name], theirs["weights"][name])


def test_an_offloaded_optimizer_has_the_hosts_cores() -> None:
    text = "subject: {photos: p, class_noun: robot}"
    offload = ("train.strategy=deepspeed", "train.deepspeed.offload=true")
    config = parse_config(text, "x", [*offload, "cluster.gpus=true"])
    assert count_threads(config, 16, num_local_workers=4) == 4
    assert count_threads(config, 2, num_local_workers=4) == 1
    # On CPUs the forward has one, and so has whatever offloads nothing.
    assert count_threads(parse_config(text, "x", [*offload]), 16, 1) == 1
    assert count_threads(parse_config(text, "x", ["cluster.gpus=true"]), 16, 1) == 1
