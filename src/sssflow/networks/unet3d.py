"""The 3-D U-Net of SSL4MIS and SemiSAM+ (after Çiçek et al., MICCAI 2016).

Facts: five levels of 16 to 256 channels, two 3x3x3 convolutions per level, each with instance norm
(no learned scale) and ReLU; max pooling downwards, trilinear resizing by two upwards, skip maps
joined; dropout of 0.3 after the coarsest level and before the last 1x1x1 convolution; convolutions
start from He's normal distribution. Source: SSL4MIS (HiLab-git/SSL4MIS), networks/unet_3D.py and
networks/utils.py (its `UnetUp3_CT`).

Axis letters: b batch, c input channels, k classes, s slices, h rows, w columns.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from sssflow.networks.base import SegmentationNet

_DROPOUT = 0.3


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Twice convolution, instance norm, ReLU; keeps the spatial size."""
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [
            nn.Conv3d(before, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet3d(SegmentationNet):
    """SSL4MIS 3-D U-Net.

    Args:
        class_count: Output classes with the background.
        base_channels: Channels of the finest level (16 in the published form).
        levels: Resolution levels (5 in the published form).
        dropout: Factor on the published dropout rate; 0 switches dropout off.
    """

    dimensions = 3

    def __init__(
        self, class_count: int, *, base_channels: int = 16, levels: int = 5, dropout: float = 1.0
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**i for i in range(levels)]
        self.class_count = class_count
        self.feature_channels = tuple(widths)
        self.stride = 2 ** (levels - 1)
        self.down = nn.ModuleList(_block(before, after) for before, after in pairwise([1, *widths]))
        self.pool = nn.MaxPool3d(2)
        self.up = nn.ModuleList(_block(fine + coarse, fine) for fine, coarse in pairwise(widths))
        self.dropout = nn.Dropout(_DROPOUT * dropout)
        self.classify = nn.Conv3d(base_channels, class_count, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)

    def features(self, image_bcshw: Tensor) -> list[Tensor]:
        """One map per level; map i has size (s, h, w) / 2^i.

        Raises:
            ValueError: In training mode, a patch of one voxel at the coarsest level (instance
                norm has nothing to average).
        """
        maps: list[Tensor] = []
        x = image_bcshw
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            maps.append(x)
        maps[-1] = self.dropout(maps[-1])
        return maps

    def head(self, features: list[Tensor]) -> Tensor:
        """Decoder over all maps."""
        x = features[-1]
        for level in reversed(range(len(features) - 1)):
            raised = functional.interpolate(
                x, scale_factor=2.0, mode="trilinear", align_corners=False
            )
            x = self.up[level](torch.cat([features[level], raised], dim=1))
        logits: Tensor = self.classify(self.dropout(x))
        return logits
