"""The V-Net that UA-MT, SSL4MIS, SemiSAM and their successors compare with on LA volumes.

Facts: five levels of 16 to 256 channels with 1, 2, 3, 3, 3 convolutions of 3x3x3, batch norm and
ReLU; downwards a 2x2x2 convolution of stride 2, upwards a transposed one, both with norm and ReLU;
the skip maps are added, not joined; channel dropout of 0.5 after the coarsest level and before the
last 1x1x1 convolution. No residual sum inside a level, unlike the V-Net of the first paper.
Source: UA-MT (yulequan/UA-MT) and SSL4MIS (HiLab-git/SSL4MIS), networks/vnet.py of both.

Axis letters: b batch, c input channels, k classes, s slices, h rows, w columns.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from sssflow.networks.base import SegmentationNet

_STAGES = (1, 2, 3, 3, 3, 3)
_DROPOUT = 0.5


def _block(inputs: int, outputs: int, stages: int) -> nn.Sequential:
    """`stages` times convolution, norm, ReLU; keeps the spatial size."""
    layers: list[nn.Module] = []
    for stage in range(stages):
        layers += [
            nn.Conv3d(outputs if stage else inputs, outputs, 3, padding=1),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 2, stride=2), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)
    )


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose3d(inputs, outputs, 2, stride=2),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class VNet(SegmentationNet):
    """V-Net as UA-MT uses it.

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
        self.down = nn.ModuleList(
            _block(width if i else 1, width, _STAGES[i]) for i, width in enumerate(widths)
        )
        self.strided = nn.ModuleList(_halve(fine, coarse) for fine, coarse in pairwise(widths))
        self.transposed = nn.ModuleList(_double(coarse, fine) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(
            _block(width, width, _STAGES[i]) for i, width in enumerate(widths[:-1])
        )
        self.dropout = nn.Dropout3d(_DROPOUT * dropout)
        self.classify = nn.Conv3d(base_channels, class_count, 1)

    def features(self, image_bcshw: Tensor) -> list[Tensor]:
        """One map per level; map i has size (s, h, w) / 2^i."""
        maps: list[Tensor] = []
        x = image_bcshw
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.strided[level - 1](x))
            maps.append(x)
        maps[-1] = self.dropout(maps[-1])
        return maps

    def head(self, features: list[Tensor]) -> Tensor:
        """Decoder over all maps."""
        x = features[-1]
        for level in reversed(range(len(features) - 1)):
            x = self.up[level](self.transposed[level](x) + features[level])
        logits: Tensor = self.classify(self.dropout(x))
        return logits
