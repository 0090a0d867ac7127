import pytest
import torch

from dreambooth_ray.compat.lightning_strategies import RayFullyShardedStrategy, RayZeroStrategy
from tests.unit.compat.private_api import check_source, find_private

USER = "lightning_strategies.py"


def test_lightning_still_has_what_is_used_of_it() -> None:
    find_private(
        "pytorch-lightning", "pytorch_lightning.strategies",
        "ModelParallelStrategy._determine_device_ids",
        "DeepSpeedStrategy._init_deepspeed_distributed", "DeepSpeedStrategy.set_world_ranks",
        user=USER,
    )  # fmt: skip


def test_what_is_left_out_of_deepspeeds_set_up_is_its_checks() -> None:
    environment, distributed = find_private(
        "pytorch-lightning", "pytorch_lightning.strategies", "DeepSpeedStrategy.setup_environment",
        "DeepSpeedStrategy.setup_distributed", user=USER,
    )  # fmt: skip
    check_source("pytorch-lightning", environment, ["CUDAAccelerator"], user=USER)
    check_source(
        "pytorch-lightning", distributed,
        ["_validate_device_index_selection", "set_world_ranks()", "_init_deepspeed_distributed()"],
        user=USER,
    )  # fmt: skip


def test_workers_take_the_device_that_ray_gave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 3)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: device)
    sharded = RayFullyShardedStrategy(data_parallel_size=1, tensor_parallel_size=1)
    assert sharded.root_device == device
    assert sharded._determine_device_ids() == [3]


def test_deepspeed_is_told_which_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is an extra")
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    assert RayZeroStrategy().root_device == torch.device("cpu", 0)
