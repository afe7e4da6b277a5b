"""Slices of one case as sprites: one picture per layer with all slices below each other.

The page moves every layer by the same offset, so layers always show the same slice. The image is a
JPEG; outlines are small palette PNGs with transparency.
Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sssflow.contracts.prompts import CasePrompts, SlicePrompt
from sssflow.evaluation.drawing import (
    PALETTE,
    Labels,
    dashed,
    display_range,
    fit_size,
    grey,
    outline,
    resize_grey,
    resize_labels,
)

_FILL_ALPHA = 72
_LONGEST_PX = 32_767
"""Of a sprite: a JPEG ends at 65,500 pixels, and browsers draw fewer."""
_WHITE = 2 * len(PALETTE) + 1
_BLACK = _WHITE + 1


@dataclass(frozen=True)
class Layer:
    """One sprite of one case.

    `kind` is `image`, `truth` (outline in black and white), `mask` (of a model, of SAM-2, or the
    truth filled) or `prompts`.
    """

    kind: str
    name: str
    data_uri: str


@dataclass(frozen=True)
class ViewerCase:
    """A case in the viewer.

    Attributes:
        case_id: Name of the case.
        note: Role and scores in words.
        slices: Indices of the shown slices, from 0.
        start: Position in `slices` to show first.
        aspect: Width over height.
        layers: Image first.
    """

    case_id: str
    note: str
    slices: tuple[int, ...]
    slice_count: int
    start: int
    aspect: float
    layers: tuple[Layer, ...]

    @property
    def panels(self) -> tuple[Layer, ...]:
        """The layers that get a panel of their own beside the plain scan."""
        return tuple(layer for layer in self.layers if layer.kind == "mask")

    def layer(self, kind: str) -> Layer | None:
        """The first layer of a kind."""
        return next((layer for layer in self.layers if layer.kind == kind), None)

    @property
    def size_bytes(self) -> int:
        """What the case adds to the page."""
        return sum(len(layer.data_uri) for layer in self.layers)


@dataclass(frozen=True)
class ViewerInput:
    """All that the viewer shows of a case; masks lie on the grid of the image."""

    case_id: str
    note: str
    image_shw: NDArray[np.generic]
    truth_shw: Labels
    masks: Mapping[str, Labels]
    prompts: CasePrompts | None
    spacing_hw: tuple[float, float]


def build_case(view: ViewerInput, *, side_px: int, max_slices: int) -> ViewerCase:
    """Draw every layer of a case."""
    count = view.image_shw.shape[0]
    size = fit_size(view.truth_shw.shape[1:], view.spacing_hw, side_px)
    slices = _thinned(count, min(max_slices, _LONGEST_PX // size[0]))
    limits = display_range(view.image_shw)
    images = [resize_grey(grey(view.image_shw[i], limits), size) for i in slices]
    truth = [_codes_of_truth(view.truth_shw[i], size) for i in slices]
    layers = [
        Layer("image", "scan", _jpeg(np.concatenate(images))),
        Layer("truth", "truth", _palette_png(np.concatenate(truth))),
        _mask_layer("truth", view.truth_shw, slices, size),
    ]
    layers += [_mask_layer(name, mask, slices, size) for name, mask in view.masks.items()]
    if view.prompts is not None and view.prompts.objects:
        layers.append(Layer("prompts", "prompts", _prompt_sprite(view.prompts, slices, size)))
    return ViewerCase(
        case_id=view.case_id,
        note=view.note,
        slices=slices,
        slice_count=count,
        start=_start(view, slices),
        aspect=size[1] / size[0],
        layers=tuple(layers),
    )


def _start(view: ViewerInput, slices: Sequence[int]) -> int:
    """Where the truth is largest, among the prompted slices if there are any."""
    area = np.count_nonzero(view.truth_shw[list(slices)], axis=(1, 2))
    objects = view.prompts.objects if view.prompts is not None else ()
    prompted = {prompt.slice_index for found in objects for prompt in found.slices}
    asked = np.array([index in prompted for index in slices])
    if (area * asked).any():
        area = area * asked
    return int(area.argmax()) if area.any() else len(slices) // 2


def _thinned(count: int, most: int) -> tuple[int, ...]:
    places = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return tuple(sorted(set(places.tolist())))


def _mask_layer(
    name: str, labels_shw: Labels, slices: Sequence[int], size: tuple[int, int]
) -> Layer:
    codes = []
    for index in slices:
        labels = resize_labels(labels_shw[index], size)
        rim = outline(labels)
        code = np.where(labels > 0, (labels - 1) % len(PALETTE) + 1, 0)
        codes.append(np.where(rim > 0, code + len(PALETTE), code).astype(np.uint8))
    return Layer("mask", name, _palette_png(np.concatenate(codes)))


def _codes_of_truth(labels_hw: Labels, size: tuple[int, int]) -> Labels:
    rim = outline(resize_labels(labels_hw, size))
    codes = np.where(rim > 0, _BLACK, 0)
    return np.where(dashed(rim) > 0, _WHITE, codes).astype(np.uint8)


def _prompt_sprite(prompts: CasePrompts, slices: Sequence[int], size: tuple[int, int]) -> str:
    height, width = size
    sprite = Image.new("L", (width, height * len(slices)), 0)
    draw = ImageDraw.Draw(sprite)
    place = {index: position for position, index in enumerate(slices)}
    scale = width / prompts.shape_shw[2], height / prompts.shape_shw[1]
    for found in prompts.objects:
        code = (found.class_index - 1) % len(PALETTE) + 1 + len(PALETTE)
        for prompt in found.slices:
            if prompt.slice_index in place:
                _draw_prompt(draw, prompt, scale, place[prompt.slice_index] * height, code)
    return _palette_png(np.asarray(sprite, dtype=np.uint8))


def _draw_prompt(
    draw: ImageDraw.ImageDraw,
    prompt: SlicePrompt,
    scale: tuple[float, float],
    top: float,
    code: int,
) -> None:
    if prompt.box_xyxy_px is not None:
        x0, y0, x1, y1 = prompt.box_xyxy_px
        # Both ends are pixels inside the object, so the drawn box ends behind the last one.
        corners = (
            x0 * scale[0],
            top + y0 * scale[1],
            (x1 + 1) * scale[0],
            top + (y1 + 1) * scale[1],
        )
        draw.rectangle(corners, outline=code, width=2)
    for (x, y), label in zip(prompt.points_xy_px, prompt.point_labels, strict=True):
        cx, cy = (x + 0.5) * scale[0], top + (y + 0.5) * scale[1]
        draw.ellipse((cx - 4, cy - 4, cx + 4, cy + 4), fill=code if label else 0, outline=_WHITE)


def _jpeg(pixels_hw: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels_hw).save(buffer, format="JPEG", quality=80, optimize=True)
    return _data_uri("image/jpeg", buffer.getvalue())


def _palette_png(codes_hw: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(codes_hw)
    colours = [(0, 0, 0), *PALETTE, *PALETTE, (255, 255, 255), (0, 0, 0)]
    picture.putpalette([value for colour in colours for value in colour])
    alphas = [0, *[_FILL_ALPHA] * len(PALETTE), *[255] * (len(PALETTE) + 2)]
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=bytes(alphas), compress_level=6)
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
