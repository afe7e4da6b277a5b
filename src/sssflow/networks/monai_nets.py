"""MONAI's BasicUNet and DynUNet behind the house interface, built by MONAI, split by us."""

from __future__ import annotations

from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor

from sssflow.networks.base import SegmentationNet


class MonaiBasicUNet(SegmentationNet):
    """MONAI BasicUNet, five levels, instance norm and leaky ReLU (MONAI's defaults).

    Raises:
        ValueError: `levels` is not 5; BasicUNet knows no other depth.
    """

    def __init__(
        self,
        class_count: int,
        *,
        base_channels: int = 16,
        levels: int = 5,
        dropout: float = 0.0,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        if levels != 5:
            raise ValueError(f"BasicUNet has 5 levels, not {levels}")
        widths = tuple(base_channels * 2**i for i in range(levels))
        self.class_count = class_count
        self.feature_channels = widths
        self.dimensions = dimensions
        self.stride = 16
        self.net = BasicUNet(
            spatial_dims=dimensions,
            in_channels=1,
            out_channels=class_count,
            features=(*widths, base_channels),
            dropout=0.1 * dropout,
        )

    def features(self, image_bchw: Tensor) -> list[Tensor]:
        """One map per level; map i has the input's size / 2^i."""
        net = self.net
        maps = [net.conv_0(image_bchw)]
        for down in (net.down_1, net.down_2, net.down_3, net.down_4):
            maps.append(down(maps[-1]))
        return maps

    def head(self, features: list[Tensor]) -> Tensor:
        """Decoder over all maps."""
        net = self.net
        x = features[-1]
        ups = (net.upcat_4, net.upcat_3, net.upcat_2, net.upcat_1)
        for up, skip in zip(ups, reversed(features[:-1]), strict=True):
            x = up(x, skip)
        logits: Tensor = net.final_conv(x)
        return logits


class MonaiDynUNet(SegmentationNet):
    """MONAI DynUNet: nnU-Net's plain U-Net with residual blocks, without deep supervision."""

    def __init__(
        self,
        class_count: int,
        *,
        base_channels: int = 16,
        levels: int = 5,
        dropout: float = 0.0,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        widths = tuple(base_channels * 2**i for i in range(levels))
        self.class_count = class_count
        self.feature_channels = widths
        self.dimensions = dimensions
        self.stride = 2 ** (levels - 1)
        strides = [1] + [2] * (levels - 1)
        self.net = DynUNet(
            spatial_dims=dimensions,
            in_channels=1,
            out_channels=class_count,
            kernel_size=[3] * levels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=list(widths),
            dropout=0.1 * dropout or None,
            res_block=True,
        )
        # The recursive view holds the same modules a second time under other names; without it
        # every weight has one name.
        del self.net.skip_layers

    def features(self, image_bchw: Tensor) -> list[Tensor]:
        """One map per level; map i has the input's size / 2^i."""
        maps = [self.net.input_block(image_bchw)]
        for down in (*self.net.downsamples, self.net.bottleneck):
            maps.append(down(maps[-1]))
        return maps

    def head(self, features: list[Tensor]) -> Tensor:
        """Decoder over all maps."""
        x = features[-1]
        for up, skip in zip(self.net.upsamples, reversed(features[:-1]), strict=True):
            x = up(x, skip)
        logits: Tensor = self.net.output_block(x)
        return logits
