"""The 2-D U-Net that SSL4MIS, UA-MT's 2-D line, BCP and UniMatch-medical all compare with.

Facts: 16 to 256 channels, two 3x3 convolutions per level with batch norm and leaky ReLU, dropout
0.05/0.1/0.2/0.3/0.5 from fine to coarse between the two, upwards a 1x1 convolution and bilinear
resizing with aligned corners, no dropout in the decoder; 1,813,764 parameters with one input
channel and four classes. Source: SSL4MIS (HiLab-git/SSL4MIS), research dossier C.2 and E.2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from sssflow.networks.base import SegmentationNet

_DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5, 0.5)


class ConvBlock(nn.Sequential):
    """Conv, norm, leaky ReLU, dropout, conv, norm, leaky ReLU; keeps the spatial size."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(inplace=True),
        )


class UpBlock(nn.Module):
    """1x1 convolution, bilinear to the skip map's size, joined with it, then a ConvBlock."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, outputs, 1)
        self.conv = ConvBlock(2 * outputs, outputs, dropout=0.0)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(b, inputs, h/2, w/2) and (b, outputs, h, w) to (b, outputs, h, w)."""
        raised = functional.interpolate(
            self.reduce(coarse), scale_factor=2.0, mode="bilinear", align_corners=True
        )
        joined: Tensor = self.conv(torch.cat([skip, raised], dim=1))
        return joined


class UNet(SegmentationNet):
    """SSL4MIS U-Net.

    Args:
        class_count: Output classes with the background.
        base_channels: Channels of the finest level (16 in the published form).
        levels: Resolution levels (5 in the published form).
        dropout: Factor on the published dropout rates; 0 switches dropout off.
    """

    def __init__(
        self, class_count: int, *, base_channels: int = 16, levels: int = 5, dropout: float = 1.0
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**i for i in range(levels)]
        self.class_count = class_count
        self.feature_channels = tuple(widths)
        self.stride = 2 ** (levels - 1)
        rates = [dropout * rate for rate in _DROPOUT[:levels]]
        self.down = nn.ModuleList(
            ConvBlock(before, after, rate)
            for before, after, rate in zip([1, *widths], widths, rates, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(UpBlock(coarse, fine) for fine, coarse in pairwise(widths))
        self.classify = nn.Conv2d(base_channels, class_count, 3, padding=1)

    def features(self, image_bchw: Tensor) -> list[Tensor]:
        """One map per level; map i has size (h, w) / 2^i."""
        maps: list[Tensor] = []
        x = image_bchw
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            maps.append(x)
        return maps

    def head(self, features: list[Tensor]) -> Tensor:
        """Decoder over all maps."""
        x = features[-1]
        for level in reversed(range(len(features) - 1)):
            x = self.up[level](x, features[level])
        logits: Tensor = self.classify(x)
        return logits
