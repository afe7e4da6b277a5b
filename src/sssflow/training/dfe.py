"""Discriminative Feature Enhancement (SSS, arXiv 2506.08949, section 4.2).

b batch, c channels of a feature level, d working width, h rows, w columns. Our readings of what
the paper leaves open: the pair is (weak, strong) with the weak features first and detached; the
output is *added* to the strong features behind a scale that starts at 0, so that the network
begins as if DFE were absent; one module per level, nothing shared; absent at prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn

from sssflow.errors import UsageError


class PointwiseMlp(nn.Module):
    """Widths d, 2d, 2d, d, d at every pixel: (linear, layer norm, ReLU) x 3, then linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 2 * width, 2 * width, width)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width))

    def forward(self, x_bdhw: Tensor) -> Tensor:
        """Same shape out as in."""
        out: Tensor = self.layers(x_bdhw.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class DfeLevel(nn.Module):
    """DFE of one feature level with `channels` channels, worked at `width` channels.

    With A = conv3x3(project(F)) of each view, s = cosine(pool A_1, pool A_2) per sample and
    q = sigmoid(s):  F_adj = q M(A_1) + (1 - q) M(A_2) + (1 - s)(A_2 - A_1).
    A level whose channels differ from `width` is projected in and back by 1x1 convolutions (the
    way back is ours: SAM-2's levels all have 256 channels and need none). Without `residual` the
    enhanced features replace the strong ones, as in the authors' code fragment.
    """

    def __init__(self, channels: int, width: int, *, residual: bool = True) -> None:
        super().__init__()
        same = channels == width
        self.project = nn.Identity() if same else nn.Conv2d(channels, width, 1)
        self.align = nn.Conv2d(width, width, 3, padding=1)
        self.mlp = PointwiseMlp(width)
        self.back = nn.Identity() if same else nn.Conv2d(width, channels, 1)
        self.scale = nn.Parameter(torch.zeros(())) if residual else None

    def enhance(self, first_bdhw: Tensor, second_bdhw: Tensor) -> Tensor:
        """F_adj from two aligned feature maps A_1, A_2 of equal shape."""
        # In float32: two views of an image are so alike that bfloat16 makes 1 - similarity zero.
        pooled_1 = first_bdhw.mean((2, 3), dtype=torch.float32)
        pooled_2 = second_bdhw.mean((2, 3), dtype=torch.float32)
        similarity = F.cosine_similarity(pooled_1, pooled_2, dim=1)[:, None, None, None]
        share = similarity.sigmoid().to(first_bdhw.dtype)
        apart = (1 - similarity).to(first_bdhw.dtype)
        fused = share * self.mlp(first_bdhw) + (1 - share) * self.mlp(second_bdhw)
        out: Tensor = fused + apart * (second_bdhw - first_bdhw)
        return out

    def forward(self, weak_bchw: Tensor, strong_bchw: Tensor) -> Tensor:
        """The strong features with the scaled enhancement added; shape (b,c,h,w)."""
        first = self.align(self.project(weak_bchw.detach()))
        second = self.align(self.project(strong_bchw))
        out: Tensor = self.back(self.enhance(first, second))
        return out if self.scale is None else strong_bchw + self.scale * out


class Dfe(nn.Module):
    """One `DfeLevel` for each chosen level of a feature list (fine to coarse).

    Args:
        channels: Channels of every level of the network.
        levels: Indices into the list; negative ones count from the coarse end.
        width: Working width, 256 in the paper's code fragment.
        residual: See `DfeLevel`.

    Raises:
        UsageError: The network has no such level.
    """

    def __init__(
        self, channels: Sequence[int], levels: Sequence[int], width: int, *, residual: bool = True
    ) -> None:
        super().__init__()
        count = len(channels)
        missing = [level for level in levels if not -count <= level < count]
        if missing:
            raise UsageError(
                "The network has no such level for DFE.",
                where="dfe_levels (below sss or sss_in_loop of the section that trains)",
                expected=f"{-count} (the finest) to -1 (the coarsest), or 0 to {count - 1}",
                found=", ".join(map(str, missing)),
                action="Correct it; networks differ in how many levels they have.",
            )
        self.levels = tuple(sorted({range(len(channels))[level] for level in levels}))
        self.by_level = nn.ModuleList(
            DfeLevel(channels[level], width, residual=residual) for level in self.levels
        )

    def forward(self, weak: Sequence[Tensor], strong: Sequence[Tensor]) -> list[Tensor]:
        """The strong list with its chosen levels enhanced; the others are passed through."""
        out = list(strong)
        for level, module in zip(self.levels, self.by_level, strict=True):
            out[level] = module(weak[level], strong[level])
        return out
