"""Overlay pictures: image, truth, and each model's outline over it; equal input, equal bytes.

Axis letters: s slices, h rows, w columns, c colour channels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sssflow.evaluation.drawing import (
    Labels,
    Pixels,
    class_colour,
    content_slices,
    dashed,
    display_range,
    fit_size,
    grey,
    outline,
    paint,
    resize_grey,
    resize_labels,
    to_rgb,
)
from sssflow.storage.atomic import write_bytes

TILE_PX = 220
_GAP, _MARGIN, _LINE = 6, 14, 20
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 33, 40), (96, 104, 114)
_TRUTH, _TRUTH_GAPS = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class CaseView:
    """All that a picture of one case needs.

    Attributes:
        case_id: Shown above.
        note: One line under it: role, Dice per model.
        image_shw: Raw intensities.
        truth_shw: The mask.
        predictions: Name to labels on the same grid, in the order of the columns.
        spacing_hw: Pixel size, for the proportions.
    """

    case_id: str
    note: str
    image_shw: NDArray[np.generic]
    truth_shw: Labels
    predictions: Mapping[str, Labels]
    spacing_hw: tuple[float, float]


def write_case_overlay(
    path: Path, view: CaseView, class_names: Sequence[str], *, rows: int = 4
) -> None:
    """One PNG of a case: a row per slice, a column for image, truth and each prediction.

    Raises:
        UnavailableError: The disk is full or read-only.
    """
    slices = content_slices([view.truth_shw, *view.predictions.values()], rows)
    _write(path, [(view, slices)], class_names)


def write_montage(path: Path, views: Sequence[CaseView], class_names: Sequence[str]) -> None:
    """One PNG of several cases, each by the slice where its truth is largest.

    Raises:
        UnavailableError: The disk is full or read-only.
    """
    _write(path, [(view, (largest_slice(view.truth_shw),)) for view in views], class_names)


def largest_slice(labels_shw: Labels) -> int:
    """Slice with most labelled voxels, the first of several; the middle one without any."""
    area = np.count_nonzero(labels_shw, axis=(1, 2))
    return int(area.argmax()) if area.any() else labels_shw.shape[0] // 2


def _write(
    path: Path,
    blocks: Sequence[tuple[CaseView, Sequence[int]]],
    class_names: Sequence[str],
) -> None:
    columns = ["image", "truth", *blocks[0][0].predictions]
    width = 2 * _MARGIN + len(columns) * (TILE_PX + _GAP) - _GAP
    parts = [_legend(class_names, width)]
    for view, slices in blocks:
        parts.append(_heading(view, columns, width))
        parts += [_row(view, index, width) for index in slices]
    parts.append(np.full((_MARGIN, width, 3), 255, dtype=np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts)).save(buffer, format="PNG", compress_level=6)
    write_bytes(path, buffer.getvalue())


def _row(view: CaseView, index: int, width: int) -> Pixels:
    limits = display_range(view.image_shw)
    size = fit_size(view.truth_shw.shape[1:], view.spacing_hw, TILE_PX)
    base = to_rgb(resize_grey(grey(view.image_shw[index], limits), size))
    truth = outline(resize_labels(view.truth_shw[index], size), width=2)
    tiles = [base.copy(), base.copy()]
    paint(tiles[1], truth)
    for prediction in view.predictions.values():
        tile = base.copy()
        paint(tile, outline(resize_labels(prediction[index], size), width=2))
        rim = outline(resize_labels(view.truth_shw[index], size))
        # White with black gaps is seen on dark and on bright tissue.
        paint(tile, rim, _TRUTH_GAPS)
        paint(tile, dashed(rim), _TRUTH)
        tiles.append(tile)
    row = np.full((size[0] + _GAP, width, 3), 255, dtype=np.uint8)
    for column, tile in enumerate(tiles):
        left = _MARGIN + column * (TILE_PX + _GAP) + (TILE_PX - size[1]) // 2
        row[: size[0], left : left + size[1]] = tile
    marked = Image.fromarray(row)
    text = f"slice {index + 1} of {view.truth_shw.shape[0]}"
    ImageDraw.Draw(marked).text(
        (_MARGIN + 6, 5), text, fill=_PAPER, font=_font(12), stroke_width=2, stroke_fill=(0, 0, 0)
    )
    return np.asarray(marked, dtype=np.uint8)


def _heading(view: CaseView, columns: Sequence[str], width: int) -> Pixels:
    picture = Image.new("RGB", (width, _MARGIN + 3 * _LINE), _PAPER)
    draw = ImageDraw.Draw(picture)
    room = width - 2 * _MARGIN
    title, note = _cut(view.case_id, 16, room), _cut(view.note, 12, room)
    draw.text((_MARGIN, _MARGIN - 4), title, fill=_INK, font=_font(16))
    draw.text((_MARGIN, _MARGIN + _LINE - 4), note, fill=_FAINT, font=_font(12))
    for column, name in enumerate(columns):
        left = _MARGIN + column * (TILE_PX + _GAP)
        text = _cut(name, 13, TILE_PX)
        draw.text((left, _MARGIN + 2 * _LINE - 2), text, fill=_INK, font=_font(13))
    return np.asarray(picture, dtype=np.uint8)


def _legend(class_names: Sequence[str], width: int) -> Pixels:
    """Colour and name of every class, in as many lines as they need, and what the lines mean."""
    room = width - 2 * _MARGIN - 18
    places: list[tuple[int, int, str]] = []
    left, top = _MARGIN, _MARGIN
    for name in class_names[1:]:
        text = _cut(name, 13, room)
        step = 18 + round(_font(13).getlength(text)) + 18
        if left > _MARGIN and left + step - 18 > width - _MARGIN:
            left, top = _MARGIN, top + _LINE
        places.append((left, top, text))
        left += step
    picture = Image.new("RGB", (width, top + 2 * _LINE), _PAPER)
    draw = ImageDraw.Draw(picture)
    for index, (x, y, text) in enumerate(places, start=1):
        draw.rectangle((x, y, x + 12, y + 12), fill=class_colour(index))
        draw.text((x + 18, y - 1), text, fill=_INK, font=_font(13))
    text = "Solid: outline of the mask named above the column. Black and white: truth."
    draw.text((_MARGIN, top + _LINE), text, fill=_FAINT, font=_font(12))
    return np.asarray(picture, dtype=np.uint8)


def _cut(text: str, size: int, room: int) -> str:
    """The text, shortened until it is no wider than `room` pixels."""
    font = _font(size)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
