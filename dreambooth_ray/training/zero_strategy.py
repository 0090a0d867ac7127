"""DeepSpeed's ZeRO under Ray Train, on CPUs and GPUs alike."""

import logging
import os
from typing import Any

import torch
from pytorch_lightning.plugins.precision import DeepSpeedPrecision
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import nn

from dreambooth_ray.compat.lightning_strategies import RayZeroStrategy
from dreambooth_ray.config.schema import Config
from dreambooth_ray.training.own_paths import HostCheckpointPathMixin


def make_zero_strategy(config: Config, universal: bool) -> DeepSpeedStrategy:
    """The configured stage. universal: whether the state to be loaded is `make_universal`'s"""
    if not config.cluster.gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    strategy = _ZeroStrategy(
        stage=config.train.deepspeed.stage,
        offload_optimizer=config.train.deepspeed.offload,
        overlap_comm=False,
        logging_batch_size_per_gpu=1,
        logging_level=logging.ERROR,
        exclude_frozen_parameters=True,
        precision_plugin=ZeroPrecision(config.train.precision),
    )
    assert isinstance(strategy.config, dict)
    # The configured optimizer runs there too, without compiling another one.
    strategy.config["zero_force_ds_cpu_optimizer"] = False
    if universal:
        strategy.config["checkpoint"] = {"load_universal": True}
    return strategy


class ZeroPrecision(DeepSpeedPrecision):
    """Weights, latents, noise and the forward process stay in float32 under bf16-mixed.

    DeepSpeed's own bf16 would cast the weights, and Lightning the batch with them: noise of
    variance 0.0008 can't be added to a latent in bf16. The denoiser alone computes in it, by the
    module's autocast, as with the other strategies. 16-mixed has DeepSpeed's weights in float16 and
    its loss scaler.
    """

    def __init__(self, precision: str) -> None:
        super().__init__("16-mixed" if precision == "16-mixed" else "32-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        """As it is."""
        return module

    def convert_input(self, data: Any) -> Any:
        """As it is."""
        return data

    def backward(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning has divided the loss by the parts of a step; DeepSpeed would once more."""
        super().backward(tensor, *args, scale_wrt_gas=False, **kwargs)


class _ZeroStrategy(HostCheckpointPathMixin, RayZeroStrategy):
    """Every worker with the device that Ray gave it, also where that is a CPU."""

    def init_deepspeed(self) -> None:
        """As Lightning's; CLIP looks at the shape of a weight before the weight is gathered."""
        from deepspeed import zero  # noqa: PLC0415  an extra

        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            position_embedding = getattr(module, "position_embedding", None)
            if isinstance(position_embedding, nn.Embedding):
                zero.register_external_parameter(module, position_embedding.weight)
        super().init_deepspeed()
