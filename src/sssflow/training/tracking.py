"""TensorBoard files of a run: scalars, and one picture of views and masks per validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sssflow.storage.atomic import disk_errors

_LOG = logging.getLogger(__name__)
_COLOURS = ((0, 0, 0), (230, 80, 60), (70, 160, 90), (60, 110, 220), (240, 190, 40), (150, 80, 190))
_SHOWN = 6


class Tracker:
    """Writes under `folder`; what an earlier session told of steps after `done_steps` goes.

    Every method but `close` raises UnavailableError where the disk is full or read-only.
    """

    def __init__(self, folder: Path, *, done_steps: int) -> None:
        self._folder = folder
        with disk_errors(folder):
            self._writer = SummaryWriter(str(folder), purge_step=done_steps + 1, flush_secs=30)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point per name."""
        with disk_errors(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def pictures(self, preview: Mapping[str, Tensor], step: int) -> None:
        """Rows = images, pseudo labels, masks, predictions of the first samples."""
        if preview:
            with disk_errors(self._folder):
                self._writer.add_image("views", picture(preview), step)

    def close(self) -> None:
        """Flush and close; a refusal of the disk is logged: the run has an ending of its own."""
        try:
            self._writer.close()
        except OSError as error:
            _LOG.warning("the last curves are not written to %s: %s", self._folder, error)


def picture(preview: Mapping[str, Tensor]) -> Tensor:
    """uint8 (3, rows, columns): one row per entry in order, one column per sample.

    Floating-point entries (b,h,w) are grey in their own range, integer ones are class colours; of
    patches (b,s,h,w) the middle slice is shown.
    """
    rows = []
    for value in preview.values():
        flat = value if value.dim() == 3 else value[:, value.shape[1] // 2]
        shown = flat[:_SHOWN].detach().cpu()
        tiles = _grey(shown) if shown.is_floating_point() else _coloured(shown)
        rows.append(torch.cat(list(tiles), dim=2))
    return torch.cat(rows, dim=1)


def _grey(image_bhw: Tensor) -> Tensor:
    low = image_bhw.amin((1, 2), keepdim=True)
    span = (image_bhw.amax((1, 2), keepdim=True) - low).clamp_min(1e-6)
    grey = ((image_bhw.float() - low) / span * 255).to(torch.uint8)
    return grey[:, None].expand(-1, 3, -1, -1)


def _coloured(label_bhw: Tensor) -> Tensor:
    table = torch.tensor(_COLOURS, dtype=torch.uint8)
    return table[label_bhw.long() % len(_COLOURS)].permute(0, 3, 1, 2)
