from pathlib import Path

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from dreambooth_ray.training.strategy import DirectCheckpointIO


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
