"""The critic of DAN: does a segmentation look like one of a labelled image?

Letters: b batch, c channels, k classes; spatial axes follow, two or three of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST_SIDE = 16
"""Smallest side of an input: four convolutions halve it."""
_SLOPE = 0.2
_DROPOUT = 0.5


class Discriminator(nn.Module):
    """Probabilities and image in, two logits out (0 unlabelled, 1 labelled).

    Four 4-wide convolutions of stride 2, leaky ReLU 0.2 and channel dropout 0.5 between them, then
    the mean over all positions and a linear layer. Source: SSL4MIS's discriminator (there the
    pooling window is fixed for one input size). Every side of the input is `LEAST_SIDE` or more.

    Args:
        class_count: k.
        dimensions: Spatial axes, 2 or 3.
        width: Channels of the first level; each level doubles them.
    """

    def __init__(self, class_count: int, dimensions: int, width: int = 64) -> None:
        super().__init__()
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.of_map = conv(class_count, width, 4, stride=2, padding=1)
        self.of_image = conv(1, width, 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            conv(width * 2**i, width * 2 ** (i + 1), 4, stride=2, padding=1) for i in range(3)
        )
        self.dropout = nn.Dropout2d(_DROPOUT) if dimensions == 2 else nn.Dropout3d(_DROPOUT)
        self.classify = nn.Linear(width * 8, 2)

    def forward(self, probability_bkhw: Tensor, image_bchw: Tensor) -> Tensor:
        """Logits (b, 2)."""
        x = functional.leaky_relu(self.of_map(probability_bkhw) + self.of_image(image_bchw), _SLOPE)
        for layer in self.down:
            x = functional.leaky_relu(layer(self.dropout(x)), _SLOPE)
        logits: Tensor = self.classify(x.flatten(2).mean(2))
        return logits


def origin_loss(logits_b2: Tensor, labelled: Sequence[bool]) -> Tensor:
    """Mean cross-entropy against where each sample is said to come from."""
    target = torch.tensor(labelled, device=logits_b2.device).long()
    return functional.cross_entropy(logits_b2.float(), target)
