"""Views of a batch, made on its device without a loop over samples.

Letters: b batch, c channels, s slices, h rows, w columns, g grid coordinates (x, y) in [-1, 1]
with pixel centres at (2i + 1) / n - 1 (torch's `align_corners=False`). In a 3-D run the spatial
axes are (s, h, w) where a name ends in `hw`.

Every random number comes from the generator that is passed in; it must live on the batch's device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Generator, Tensor

from sssflow.training.config import CutMixConfig, StrongConfig, WeakConfig


@dataclass(frozen=True)
class Geometry:
    """Where each pixel of the view is read from; the same for image, label and soft masks.

    Outside the image the nearest border pixel is read, in all three alike.
    """

    grid_bhwg: Tensor

    def image(self, image_bchw: Tensor, interpolation: str = "bilinear") -> Tensor:
        """Bilinear (or nearest); same shape."""
        return F.grid_sample(
            image_bchw, self.grid_bhwg, interpolation, padding_mode="border", align_corners=False
        )

    def soft(self, mask_bchw: Tensor) -> Tensor:
        """Soft masks, bilinear like the image; an empty batch axis or class axis is allowed."""
        return self.image(mask_bchw) if mask_bchw.numel() else mask_bchw

    def label(self, label_bhw: Tensor) -> Tensor:
        """Class labels (integers up to 255), nearest; same dtype and shape."""
        moved = self.image(label_bhw[:, None].to(self.grid_bhwg.dtype), "nearest")
        return moved[:, 0].round().to(label_bhw.dtype)


@dataclass(frozen=True)
class VolumeGeometry:
    """The same for patches of volumes (b, c, s, h, w).

    Flips and quarter turns, exact to the bit, then a plane geometry that all slices share.

    Attributes:
        turned_b: Rows and columns change places (only patches with square slices have any true).
        flipped_ba: Which of slices, rows and columns then run backwards.
        plane: In-plane affine and elastic map; None without any.
    """

    turned_b: Tensor
    flipped_ba: Tensor
    plane: Geometry | None

    def image(self, image_bcshw: Tensor) -> Tensor:
        """Bilinear in plane; same shape."""
        moved = self._exact(image_bcshw)
        if self.plane is None:
            return moved
        flat = self.plane.image(moved.flatten(1, 2))
        return flat.view(moved.shape)

    def soft(self, mask_bcshw: Tensor) -> Tensor:
        """Soft masks like the image; an empty batch axis or class axis is allowed."""
        return self.image(mask_bcshw) if mask_bcshw.numel() else mask_bcshw

    def label(self, label_bshw: Tensor) -> Tensor:
        """Class labels (integers up to 255), nearest; same dtype and shape."""
        moved = self._exact(label_bshw[:, None])
        if self.plane is None:
            return moved[:, 0]
        flat = self.plane.image(moved[:, 0].to(self.plane.grid_bhwg.dtype), "nearest")
        return flat.round().to(label_bshw.dtype)

    def _exact(self, value_bcshw: Tensor) -> Tensor:
        x = value_bcshw
        if x.shape[-2] == x.shape[-1]:
            x = torch.where(spread(self.turned_b, x), x.transpose(-2, -1), x)
        for number, axis in enumerate((-3, -2, -1)):
            x = torch.where(spread(self.flipped_ba[:, number], x), x.flip(axis), x)
        return x


def spread(value_b: Tensor, like: Tensor) -> Tensor:
    """One value per sample, shaped so that it broadcasts over `like` (b, …)."""
    return value_b.view(-1, *[1] * (like.dim() - 1))


def uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """`count` numbers in [low, high)."""
    drawn = torch.rand(count, generator=generator, device=generator.device)
    return low + (high - low) * drawn


def chosen(count: int, probability: float, generator: Generator) -> Tensor:
    """`count` booleans, each true with `probability`."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


@overload
def weak_geometry(shape: tuple[int, int, int], config: WeakConfig, g: Generator) -> Geometry: ...
@overload
def weak_geometry(
    shape: Sequence[int], config: WeakConfig, g: Generator
) -> Geometry | VolumeGeometry: ...
def weak_geometry(
    shape: Sequence[int], config: WeakConfig, g: Generator
) -> Geometry | VolumeGeometry:
    """Random flip, quarter turn, affine map and elastic displacement, drawn per sample.

    `shape` is (b, h, w), or (b, s, h, w) for patches of volumes. Those flip along every axis; all
    else happens in plane, the same in all slices. Where slices are not square, only half turns.
    Angles and shears are in pixels of a square grid, so nothing is distorted on an oblong image.
    """
    if len(shape) == 3:
        return _plane_geometry((shape[0], shape[1], shape[2]), config, g)
    count, _, height, width = shape
    turns = torch.randint(0, 4, (count,), generator=g, device=g.device)
    turns = turns * chosen(count, config.rot90_probability, g)
    if height != width:
        turns = turns // 2 * 2
    flipped = torch.stack([chosen(count, config.flip_probability, g) for _ in range(3)], 1)
    # numpy.rot90 by k quarter turns: transpose if k is odd, then flip rows (1, 2), columns (2, 3).
    flipped[:, 1] ^= (turns == 1) | (turns == 2)
    flipped[:, 2] ^= turns >= 2
    still = config.model_copy(update={"flip_probability": 0.0, "rot90_probability": 0.0})
    moves = config.affine_probability > 0 or config.elastic_probability > 0
    plane = _plane_geometry((count, height, width), still, g) if moves else None
    return VolumeGeometry(turns.remainder(2) == 1, flipped, plane)


def _plane_geometry(shape_bhw: tuple[int, int, int], config: WeakConfig, g: Generator) -> Geometry:
    """All of `config` as one grid per sample, in float32 whatever the autocast state.

    A step runs under autocast, whose bfloat16 products keep 8 bits of a coordinate: neighbours of
    a row of 512 would read the same pixel.
    """
    with torch.autocast(g.device.type, enabled=False):
        matrix, shift = _affine(shape_bhw, config, g)
        theta = torch.cat([matrix, shift[:, :, None]], dim=2)
        size = [shape_bhw[0], 1, *shape_bhw[1:]]
        grid = F.affine_grid(theta, size, align_corners=False)
        if config.elastic_probability > 0:
            grid = grid + _elastic_bhwg(shape_bhw, config, g)
        return Geometry(grid)


def _affine(
    shape_bhw: tuple[int, int, int], config: WeakConfig, g: Generator
) -> tuple[Tensor, Tensor]:
    """Matrix (b, 2, 2) and shift (b, 2) in normalised coordinates; each is drawn by itself."""
    count, height, width = shape_bhw
    matrix, still = _affine_b22(count, config, g)
    on = (chosen(count, config.affine_probability, g) & ~still).float()
    limit = config.translation
    shift = torch.stack([uniform(count, -limit, limit, g) * 2 * on for _ in range(2)], dim=1)
    # Normalised coordinates stretch an oblong image to a square; undo that around the rotation.
    half = _pair(width / 2, height / 2, g.device)
    return matrix * half[None, None, :] / half[None, :, None], shift


def _affine_b22(count: int, config: WeakConfig, g: Generator) -> tuple[Tensor, Tensor]:
    """Flip, quarter turn, rotation, zoom and shear as one 2 x 2 matrix per sample.

    Second, which samples must not be shifted: with the rule `either` those in the turning half.
    Source of that rule: SSL4MIS's RandomGenerator.
    """
    moved = chosen(count, config.affine_probability, g)
    angle, zoom, shear = (uniform(count, -1, 1, g) for _ in range(3))
    turns = torch.randint(0, 4, (count,), generator=g, device=g.device)
    turned = chosen(count, config.rot90_probability, g)
    flipped = torch.stack([chosen(count, config.flip_probability, g) for _ in "xy"], 1)
    still = torch.zeros_like(moved)
    if config.rule == "either":
        still, moved = turned, moved & ~turned
        axis = torch.randint(0, 2, (count,), generator=g, device=g.device)
        flipped = F.one_hot(axis, 2).bool() & (turned & flipped[:, 0])[:, None]
    on = moved.float()
    angle = angle * math.radians(config.rotation_deg) * on
    zoom = torch.exp(zoom * math.log1p(config.scale) * on)
    shear = shear * config.shear * on
    turns = turns * turned
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)
    # Exact integers for the quarter turn: cos(pi/2) is not zero in floating point.
    quarter_cos = (1 - turns.remainder(4)).remainder(2) * (1 - (turns == 2).long() * 2)
    quarter_sin = turns.remainder(2) * (2 - turns)
    quarter = torch.stack([quarter_cos, -quarter_sin, quarter_sin, quarter_cos], 1)
    one, zero = torch.ones_like(shear), torch.zeros_like(shear)
    skew = torch.stack([one, shear, zero, one], 1).view(-1, 2, 2)
    matrix = quarter.view(-1, 2, 2).float() @ rotation @ skew
    flips = 1 - 2 * flipped.float()
    return matrix * flips[:, None, :] * zoom[:, None, None], still


def _elastic_bhwg(shape_bhw: tuple[int, int, int], config: WeakConfig, g: Generator) -> Tensor:
    count, height, width = shape_bhw
    nodes = config.elastic_nodes
    coarse = torch.randn((count, 2, nodes, nodes), generator=g, device=g.device)
    on = chosen(count, config.elastic_probability, g).float()[:, None, None, None]
    smooth = F.interpolate(coarse * on, (height, width), mode="bicubic", align_corners=True)
    return smooth.permute(0, 2, 3, 1) * (2 * config.elastic_share)


@functools.lru_cache(maxsize=64)
def _pair(x: float, y: float, device: torch.device) -> Tensor:
    """Two numbers on the device; made once, since each copy to a GPU waits for the GPU."""
    return torch.tensor([x, y], device=device)


def strong_view(image_bchw: Tensor, config: StrongConfig, g: Generator) -> Tensor:
    """Intensity changes only: labels and masks of the weak view stay right.

    Brightness and contrast, gamma, blur, noise, cut-out; drawn per sample. Values are relative to
    the sample's own range, so any intensity rule will do.
    """
    count, inner = image_bchw.shape[0], tuple(range(1, image_bchw.dim()))
    low = image_bchw.amin(inner, keepdim=True)
    span = (image_bchw.amax(inner, keepdim=True) - low).clamp_min(1e-6)
    x = (image_bchw - low) / span
    x = _jitter(x, config, g)
    if config.gamma_probability > 0:
        limit = math.log1p(config.gamma)
        on = chosen(count, config.gamma_probability, g).float()
        exponent = torch.exp(uniform(count, -limit, limit, g) * on)
        x = x.clamp_min(1e-6).pow(spread(exponent, x))
    if config.blur_probability > 0:
        sigma = uniform(count, 0.1, config.blur_sigma_px, g)
        x = _blur(x, sigma, chosen(count, config.blur_probability, g), config.blur_sigma_px)
    if config.noise_probability > 0:
        std = uniform(count, 0, config.noise_std, g) * chosen(count, config.noise_probability, g)
        noise = torch.randn(x.shape, generator=g, device=g.device)
        x = x + spread(std, x) * noise
    if config.cutout_probability > 0:
        boxes = random_boxes(x.shape, _CUTOUT, g)
        boxes = boxes & spread(chosen(count, config.cutout_probability, g), boxes)
        x = torch.where(boxes[:, None], torch.zeros_like(x), x)
    return x * span + low


def _jitter(x: Tensor, config: StrongConfig, g: Generator) -> Tensor:
    count = x.shape[0]
    on = chosen(count, config.jitter_probability, g).float()
    bright = 1 + uniform(count, -1, 1, g) * config.brightness * on
    contrast = 1 + uniform(count, -1, 1, g) * config.contrast * on
    x = x * spread(bright, x)
    mean = x.mean(tuple(range(1, x.dim())), keepdim=True)
    return mean + (x - mean) * spread(contrast, x)


def _blur(x: Tensor, sigma: Tensor, on: Tensor, largest_px: float) -> Tensor:
    """Separable Gaussian with one sigma per sample; samples that are not `on` stay bit-equal.

    Patches of volumes are blurred along their slices' axis too. In float32 whatever the autocast
    state, whose convolutions would leave 8 bits of a grey value.
    """
    with torch.autocast(x.device.type, enabled=False):
        return torch.where(spread(on, x), _smooth(x, sigma, largest_px), x)


def _smooth(x: Tensor, sigma: Tensor, largest_px: float) -> Tensor:
    count, channels, height, width = *x.shape[:2], *x.shape[-2:]
    radius = max(1, math.ceil(2.5 * largest_px))
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    groups = count * channels
    flat = x.reshape(groups, -1, height, width).transpose(0, 1)
    flat = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=groups)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=groups)
    if x.dim() == 5:
        flat = flat.transpose(0, 1).reshape(1, groups, x.shape[2], height * width)
        flat = F.pad(flat, (0, 0, radius, radius), mode="replicate")
        flat = F.conv2d(flat, kernel[:, None, :, None], groups=groups)
    return flat.reshape(x.shape)


_CUTOUT = CutMixConfig(probability=1.0, area_low=0.02, area_high=0.15)


def random_boxes(shape: torch.Size, config: CutMixConfig, g: Generator) -> Tensor:
    """Boolean (b, h, w): one box per sample, all false where the sample drew none.

    Area share uniform in [area_low, area_high], side ratio log-uniform, position uniform with the
    box inside the image; a side longer than the image is cut to it. Source: UniMatch V2. For
    patches (b, c, s, h, w) the share is of the volume and the boolean (b, s, h, w): first the
    number of slices (the share's cube root of them, off by up to the root of `aspect`), then the
    rectangle that keeps the share.
    """
    count, height, width = shape[0], shape[-2], shape[-1]
    share = uniform(count, config.area_low, config.area_high, g)
    if len(shape) == 5:
        depth = shape[2]
        off = torch.exp(uniform(count, -0.5, 0.5, g) * math.log(config.aspect))
        box_s = (share ** (1 / 3) * off * depth).clamp(1, depth).round()
        share = (share * depth / box_s).clamp_max(1)
        front = (uniform(count, 0, 1, g) * (depth - box_s + 1)).floor()
        slices = torch.arange(depth, device=g.device)[None]
        inside_slices = (slices >= front[:, None]) & (slices < (front + box_s)[:, None])
        return (
            inside_slices[:, :, None, None] & _rectangles(share, height, width, config, g)[:, None]
        )
    return _rectangles(share, height, width, config, g)


def _rectangles(
    share: Tensor, height: int, width: int, config: CutMixConfig, g: Generator
) -> Tensor:
    """Boolean (b, h, w)."""
    count = len(share)
    area = share * height * width
    ratio = torch.exp(uniform(count, -1, 1, g) * math.log(config.aspect))
    box_h = (area * ratio).sqrt().clamp(1, height).floor()
    box_w = (area / ratio).sqrt().clamp(1, width).floor()
    top = (uniform(count, 0, 1, g) * (height - box_h + 1)).floor()
    left = (uniform(count, 0, 1, g) * (width - box_w + 1)).floor()
    rows = torch.arange(height, device=g.device)[None, :, None]
    columns = torch.arange(width, device=g.device)[None, None, :]
    inside_rows = (rows >= _column(top)) & (rows < _column(top + box_h))
    inside_columns = (columns >= _column(left)) & (columns < _column(left + box_w))
    return inside_rows & inside_columns & _column(chosen(count, config.probability, g))


def paste(value: Tensor, boxes_bhw: Tensor) -> Tensor:
    """CutMix: inside the box the value of the partner, which is the batch in reversed order.

    `value` is (b,h,w) or (b,c,h,w); with c, the box covers every channel. A value at a coarser
    size than the boxes (a feature map) reads the box at its pixel centres.
    """
    boxes = boxes_bhw if value.dim() == boxes_bhw.dim() else boxes_bhw[:, None]
    size = value.shape[1 - boxes_bhw.dim() :]
    if size != boxes_bhw.shape[1:]:
        boxes = F.interpolate(boxes.float(), size, mode="nearest-exact") > 0.5
    return torch.where(boxes, value.flip(0), value)


def _column(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None]
