"""Views of a batch, made on its device without a loop over samples.

Letters: b batch, c channels, h rows, w columns, g grid coordinates (x, y) in [-1, 1] with pixel
centres at (2i + 1) / n - 1 (torch's `align_corners=False`).

Every random number comes from the generator that is passed in; it must live on the batch's device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    def image(self, image_bchw: Tensor) -> Tensor:
        """Bilinear; same shape."""
        return F.grid_sample(
            image_bchw, self.grid_bhwg, "bilinear", padding_mode="border", align_corners=False
        )

    def soft(self, mask_bchw: Tensor) -> Tensor:
        """Soft masks, bilinear like the image; an empty batch axis or class axis is allowed."""
        return self.image(mask_bchw) if mask_bchw.numel() else mask_bchw

    def label(self, label_bhw: Tensor) -> Tensor:
        """Class labels (integers up to 255), nearest; same dtype and shape."""
        moved = F.grid_sample(
            label_bhw[:, None].to(self.grid_bhwg.dtype),
            self.grid_bhwg,
            "nearest",
            padding_mode="border",
            align_corners=False,
        )
        return moved[:, 0].round().to(label_bhw.dtype)


def uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """`count` numbers in [low, high)."""
    drawn = torch.rand(count, generator=generator, device=generator.device)
    return low + (high - low) * drawn


def chosen(count: int, probability: float, generator: Generator) -> Tensor:
    """`count` booleans, each true with `probability`."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def weak_geometry(shape_bhw: tuple[int, int, int], config: WeakConfig, g: Generator) -> Geometry:
    """Random flip, quarter turn, affine map and elastic displacement, drawn per sample.

    Angles and shears are in pixels of a square grid, so nothing is distorted on an oblong image.
    """
    count, height, width = shape_bhw
    matrix = _affine_b22(count, config, g)
    on = chosen(count, config.affine_probability, g).float()
    limit = config.translation
    shift = torch.stack([uniform(count, -limit, limit, g) * 2 * on for _ in range(2)], dim=1)
    # Normalised coordinates stretch an oblong image to a square; undo that around the rotation.
    half = torch.tensor([width / 2, height / 2], device=g.device)
    matrix = matrix * half[None, None, :] / half[None, :, None]
    theta = torch.cat([matrix, shift[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    if config.elastic_probability > 0:
        grid = grid + _elastic_bhwg(shape_bhw, config, g)
    return Geometry(grid)


def _affine_b22(count: int, config: WeakConfig, g: Generator) -> Tensor:
    """Flip, quarter turn, rotation, zoom and shear as one 2 x 2 matrix per sample."""
    on = chosen(count, config.affine_probability, g).float()
    angle = uniform(count, -1, 1, g) * math.radians(config.rotation_deg) * on
    zoom = torch.exp(uniform(count, -1, 1, g) * math.log1p(config.scale) * on)
    shear = uniform(count, -1, 1, g) * config.shear * on
    turns = torch.randint(0, 4, (count,), generator=g, device=g.device)
    turns = turns * chosen(count, config.rot90_probability, g)
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)
    # Exact integers for the quarter turn: cos(pi/2) is not zero in floating point.
    quarter_cos = (1 - turns.remainder(4)).remainder(2) * (1 - (turns == 2).long() * 2)
    quarter_sin = turns.remainder(2) * (2 - turns)
    quarter = torch.stack([quarter_cos, -quarter_sin, quarter_sin, quarter_cos], 1)
    flips = torch.stack(
        [1 - 2 * chosen(count, config.flip_probability, g).float() for _ in "xy"], 1
    )
    one, zero = torch.ones_like(shear), torch.zeros_like(shear)
    skew = torch.stack([one, shear, zero, one], 1).view(-1, 2, 2)
    matrix = quarter.view(-1, 2, 2).float() @ rotation @ skew
    return matrix * flips[:, None, :] * zoom[:, None, None]


def _elastic_bhwg(shape_bhw: tuple[int, int, int], config: WeakConfig, g: Generator) -> Tensor:
    count, height, width = shape_bhw
    nodes = config.elastic_nodes
    coarse = torch.randn((count, 2, nodes, nodes), generator=g, device=g.device)
    on = chosen(count, config.elastic_probability, g).float()[:, None, None, None]
    smooth = F.interpolate(coarse * on, (height, width), mode="bicubic", align_corners=True)
    to_grid = torch.tensor([2 / width, 2 / height], device=g.device) * config.elastic_px
    return smooth.permute(0, 2, 3, 1) * to_grid


def strong_view(image_bchw: Tensor, config: StrongConfig, g: Generator) -> Tensor:
    """Intensity changes only: labels and masks of the weak view stay right.

    Brightness and contrast, gamma, blur, noise, cut-out; drawn per sample. Values are relative to
    the sample's own range, so any intensity rule will do.
    """
    count = image_bchw.shape[0]
    low = image_bchw.amin((1, 2, 3), keepdim=True)
    span = (image_bchw.amax((1, 2, 3), keepdim=True) - low).clamp_min(1e-6)
    x = (image_bchw - low) / span
    x = _jitter(x, config, g)
    if config.gamma_probability > 0:
        limit = math.log1p(config.gamma)
        on = chosen(count, config.gamma_probability, g).float()
        exponent = torch.exp(uniform(count, -limit, limit, g) * on)[:, None, None, None]
        x = x.clamp_min(1e-6).pow(exponent)
    if config.blur_probability > 0:
        sigma = uniform(count, 0.1, config.blur_sigma_px, g)
        x = _blur(x, sigma, chosen(count, config.blur_probability, g), config.blur_sigma_px)
    if config.noise_probability > 0:
        std = uniform(count, 0, config.noise_std, g) * chosen(count, config.noise_probability, g)
        noise = torch.randn(x.shape, generator=g, device=g.device)
        x = x + std[:, None, None, None] * noise
    if config.cutout_probability > 0:
        boxes = random_boxes(x.shape, _CUTOUT, g) & _column(
            chosen(count, config.cutout_probability, g)
        )
        x = torch.where(boxes[:, None], torch.zeros_like(x), x)
    return x * span + low


def _jitter(x: Tensor, config: StrongConfig, g: Generator) -> Tensor:
    count = x.shape[0]
    on = chosen(count, config.jitter_probability, g).float()
    bright = 1 + uniform(count, -1, 1, g) * config.brightness * on
    contrast = 1 + uniform(count, -1, 1, g) * config.contrast * on
    x = x * bright[:, None, None, None]
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * contrast[:, None, None, None]


def _blur(x: Tensor, sigma: Tensor, on: Tensor, largest_px: float) -> Tensor:
    """Separable Gaussian with one sigma per sample; samples that are not `on` stay bit-equal."""
    count, channels = x.shape[:2]
    radius = max(1, math.ceil(2.5 * largest_px))
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    groups = count * channels
    flat = x.reshape(1, groups, *x.shape[2:])
    flat = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=groups)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=groups)
    return torch.where(on[:, None, None, None], flat.reshape(x.shape), x)


_CUTOUT = CutMixConfig(probability=1.0, area_low=0.02, area_high=0.15)


def random_boxes(shape: torch.Size, config: CutMixConfig, g: Generator) -> Tensor:
    """Boolean (b, h, w): one box per sample, all false where the sample drew none.

    Area share uniform in [area_low, area_high], side ratio log-uniform, position uniform with the
    box inside the image; a side longer than the image is cut to it. Source: UniMatch V2.
    """
    count, height, width = shape[0], shape[-2], shape[-1]
    area = uniform(count, config.area_low, config.area_high, g) * height * width
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
    boxes = boxes_bhw if value.dim() == 3 else boxes_bhw[:, None]
    if value.shape[-2:] != boxes.shape[-2:]:
        boxes = F.interpolate(boxes.float(), value.shape[-2:], mode="nearest-exact") > 0.5
    return torch.where(boxes, value.flip(0), value)


def _column(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None]
