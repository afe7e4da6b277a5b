"""The one interface of every student: features, then head.

Axis letters: b batch, c input channels, k classes, h rows, w columns. In 3-D networks, and in
whatever serves both, the spatial axes are (s, h, w), s slices, where a name ends in `hw`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class SegmentationNet(nn.Module, ABC):
    """A network split where semi-supervised methods perturb it: between features and head.

    Attributes:
        class_count: Number of output classes k, background included.
        feature_channels: Channels of each map of `features`, fine to coarse.
        stride: Every side of the input must be a multiple of it.
        dimensions: 2 for slices (b, c, h, w), 3 for volumes (b, c, s, h, w).
        free_size: Whether one ONNX graph serves every size; False: it has the training size.
    """

    class_count: int
    feature_channels: tuple[int, ...]
    stride: int
    dimensions: int = 2
    free_size: bool = True

    @abstractmethod
    def features(self, image_bchw: Tensor) -> list[Tensor]:
        """Encoder maps, fine to coarse, map i of shape (b, feature_channels[i], …)."""

    @abstractmethod
    def head(self, features: list[Tensor]) -> Tensor:
        """Logits (b, k, …) at input size from maps of the shapes that `features` gives."""

    def forward(self, image_bchw: Tensor) -> Tensor:
        """Logits (b, k, …) at input size."""
        return self.head(self.features(image_bchw))
