"""The window of a slice that SAM-2 sees, and the exact way there and back.

Frames: *index* coordinates of the original slice (the prompts' frame): pixel i is at i, its area is
[i - 0.5, i + 0.5]. *Input* coordinates: the same convention on SAM-2's square input; the package
adds 0.5 itself. With a window of `width` pixels from pixel `x0`, and input side S,

    x_input = (x + 0.5 - x0) * S / width - 0.5.

A point is a pixel centre. A box holds whole pixels: (x0, y0, x1, y1) covers [x0 - 0.5, x1 + 0.5].
Both conventions make flips and shifts of a slice flips and shifts of its mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from sssflow.contracts.prompts import SlicePrompt

OUTSIDE_LOGIT = -20.0
"""Mask logit of what lies outside the window: SAM-2 never saw it."""


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels; it may reach beyond the slice, which is then edge-padded.

    Attributes:
        x0, y0: First column and row, may be negative.
        width, height: Size in pixels.
    """

    x0: int
    y0: int
    width: int
    height: int

    def points_to_input(
        self, points_xy: Iterable[tuple[float, float]], input_size: int
    ) -> list[tuple[float, float]]:
        """Input coordinates of index coordinates."""
        sx, sy = input_size / self.width, input_size / self.height
        return [
            ((x + 0.5 - self.x0) * sx - 0.5, (y + 0.5 - self.y0) * sy - 0.5) for x, y in points_xy
        ]

    def box_to_input(
        self, box_xyxy: tuple[float, float, float, float], input_size: int
    ) -> list[tuple[float, float]]:
        """The two outer corners of an inclusive box, in input coordinates."""
        x0, y0, x1, y1 = box_xyxy
        corners = ((x0 - 0.5, y0 - 0.5), (x1 + 0.5, y1 + 0.5))
        return self.points_to_input(corners, input_size)

    def holds(self, box_xyxy: tuple[float, float, float, float]) -> bool:
        """Whether all pixels of an inclusive box lie in the window."""
        x0, y0, x1, y1 = box_xyxy
        across = self.x0 <= x0 and x1 < self.x0 + self.width
        return across and self.y0 <= y0 and y1 < self.y0 + self.height

    def crop(self, slices_b1hw: Tensor, input_size: int) -> Tensor:
        """The window of each slice at the input size, (b, 1, S, S); averages where it shrinks."""
        h, w = slices_b1hw.shape[-2:]
        left, top = max(0, -self.x0), max(0, -self.y0)
        right = max(0, self.x0 + self.width - w)
        bottom = max(0, self.y0 + self.height - h)
        inside = slices_b1hw[
            ...,
            max(0, self.y0) : min(h, self.y0 + self.height),
            max(0, self.x0) : min(w, self.x0 + self.width),
        ]
        padded = functional.pad(inside, (left, right, top, bottom), mode="replicate")
        return functional.interpolate(
            padded, size=(input_size, input_size), mode="bilinear", antialias=True
        )

    def paste(self, logits_n1yx: Tensor, shape_hw: tuple[int, int]) -> Tensor:
        """Mask logits on the original slice (n, h, w); `OUTSIDE_LOGIT` outside the window."""
        h, w = shape_hw
        grown = functional.interpolate(
            logits_n1yx, size=(self.height, self.width), mode="bilinear", antialias=True
        )[:, 0]
        whole = logits_n1yx.new_full((len(grown), h, w), OUTSIDE_LOGIT)
        y0, x0 = max(0, self.y0), max(0, self.x0)
        y1, x1 = min(h, self.y0 + self.height), min(w, self.x0 + self.width)
        whole[:, y0:y1, x0:x1] = grown[:, y0 - self.y0 : y1 - self.y0, x0 - self.x0 : x1 - self.x0]
        return whole


def full_window(shape_hw: tuple[int, int]) -> Window:
    """The whole slice; a slice that is not square is stretched, as the package's predictor does."""
    return Window(0, 0, shape_hw[1], shape_hw[0])


def prompts_window(
    prompts: Iterable[SlicePrompt],
    shape_hw: tuple[int, int],
    *,
    margin: float,
    min_px: int,
) -> Window:
    """A near-square window around all prompts of a case.

    Args:
        prompts: All prompts of all objects of the case.
        shape_hw: Shape of a slice.
        margin: Added on each side, as a share of the longer side of the union of the prompts.
        min_px: Shortest side of the window.

    The sides differ by at most one pixel, so that the window is centred exactly and a flipped
    case gets the flipped window. It may reach beyond the slice. No prompts: the whole slice.
    """
    xs: list[float] = []
    ys: list[float] = []
    for prompt in prompts:
        xs += [x for x, _ in prompt.points_xy_px]
        ys += [y for _, y in prompt.points_xy_px]
        if prompt.box_xyxy_px is not None:
            x0, y0, x1, y1 = prompt.box_xyxy_px
            xs, ys = [*xs, x0, x1], [*ys, y0, y1]
    if not xs:
        return full_window(shape_hw)
    (left, right), (top, bottom) = _whole(xs), _whole(ys)
    longest = max(right - left, bottom - top)
    side = max(min_px, math.ceil(longest * (1 + 2 * margin)))
    width, height = side + (side - right + left) % 2, side + (side - bottom + top) % 2
    x0_px = left - (width - right + left) // 2
    y0_px = top - (height - bottom + top) // 2
    return Window(x0_px, y0_px, width, height)


def _whole(values: list[float]) -> tuple[int, int]:
    """First pixel and one past the last pixel that the values touch."""
    return math.floor(min(values) + 0.5), math.ceil(max(values) - 0.5) + 1
