"""How sure a network is, pixel by pixel, from repeated predictions with dropout and noise.

Letters: b batch, c channels, k classes; spatial axes follow, two or three of them.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Generator, Tensor, nn

from sssflow.networks.base import SegmentationNet
from sssflow.training.modes import training_mode

_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_SMALL = 1e-6


def clipped_noise(like: Tensor, std: float, generator: Generator) -> Tensor:
    """Gaussian noise of `like`'s shape, cut at two standard deviations (SSL4MIS: std 0.1)."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device)
    return (std * noise).clamp(-2 * std, 2 * std)


def dropout_active(net: nn.Module) -> AbstractContextManager[None]:
    """Dropout draws inside, whatever the mode of the net; batch norm stays as it is."""
    return training_mode([m for m in net.modules() if isinstance(m, _DROPOUTS)])


@torch.no_grad()
def monte_carlo(
    net: SegmentationNet, image_bchw: Tensor, *, passes: int, noise_std: float, generator: Generator
) -> Tensor:
    """Mean softmax (b, k, ...) of `passes` predictions, each with its own dropout and noise.

    Noise comes from `generator`, dropout from torch's global one, which the loop sets per step.
    Source: UA-MT (Yu et al., MICCAI 2019), there with 8 passes.
    """
    total: Tensor | None = None
    with dropout_active(net):
        for _ in range(passes):
            noisy = image_bchw + clipped_noise(image_bchw, noise_std, generator)
            probability = net(noisy).float().softmax(1)
            total = probability if total is None else total + probability
    if total is None:
        raise ValueError("monte_carlo needs one pass or more")
    return total / passes


def entropy(probability_bkhw: Tensor) -> Tensor:
    """Predictive entropy (b, ...) in nats, from 0 to ln k. Source: UA-MT."""
    return -(probability_bkhw * (probability_bkhw + _SMALL).log()).sum(1)


def entropy_limit(class_count: int, share: float) -> float:
    """`share` of the largest entropy that k classes can have, ln k."""
    return share * math.log(class_count)
