import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import subprocess_script

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.training.own_paths import HostCheckpointPathMixin
from dreambooth_ray.training.strategy import (
    DirectCheckpointIO,
    ReplicatedStrategy,
    count_threads,
    set_num_threads,
)


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


class StrategyOfSome(ReplicatedStrategy):
    """Of so many workers, without a process group."""

    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.num_workers = num_workers

    @property
    def world_size(self) -> int:
        return self.num_workers

    def _setup_model(self, model: Any) -> Any:
        return ["wrapped", model]

    def _register_ddp_hooks(self) -> None:
        """On GPUs alone."""


def test_gradients_are_averaged_where_there_is_somebody_to_do_it_with() -> None:
    for num_workers in (1, 2):
        strategy, module = StrategyOfSome(num_workers), LightningModule()
        strategy.model = module
        strategy.configure_ddp()
        expected = module if num_workers == 1 else ["wrapped", module]
        assert strategy.model == expected


class FirstWorkersStrategy(SingleDeviceStrategy):
    """Of a worker on another host than the first: it is told of that one's path."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return "/of/the/first" if isinstance(obj, str) else 7

    def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
        self.saved_to = self.broadcast(filepath)


class OwnStrategy(HostCheckpointPathMixin, FirstWorkersStrategy):
    pass


def test_each_host_saves_to_its_own_path() -> None:
    strategy = OwnStrategy()
    strategy.save_checkpoint({}, "/of/this/host")
    assert strategy.saved_to == "/of/this/host"
    assert strategy.broadcast("a nonce") == "/of/the/first"
    assert strategy.broadcast(5) == 7


def test_lightning_leaves_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    set_num_threads(1)
    subprocess_script._set_num_threads_if_needed(1)
    assert torch.get_num_threads() == 1
