"""The protocol of a prompted SAM-2: what every backend (PyTorch, ONNX Runtime, Triton) offers.

Frames: slices and prompts are in the case's own grid (index coordinates, boxes inclusive, see
`geometry`); features and low-resolution masks belong to a `Window` of it, at the model's input.
Letters: b slices, n objects, h rows, w columns, y and x rows and columns of a low-resolution mask
(a quarter of the input size).

A backend without memory modules offers `Promptable`; one with them offers `PromptableVideo`.
`propagate.py` turns either into masks of whole volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import Sha256
from sssflow.sam.geometry import Window

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prompt:
    """One object on one slice; at least one of box, points and mask.

    Attributes:
        box_xyxy_px: First and last column and row, inclusive, index coordinates; or None.
        points_xy_px: (x, y) index coordinates.
        point_labels: 1 inside, 0 outside, one per point.
        mask_logits_yx: Logits of a rough mask at the low resolution of the window, or None.
    """

    box_xyxy_px: tuple[float, float, float, float] | None = None
    points_xy_px: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    mask_logits_yx: Floats | None = None

    @property
    def point_count(self) -> int:
        """Sparse prompts of the object: a box counts as two points."""
        return len(self.point_labels) + (2 if self.box_xyxy_px is not None else 0)


@dataclass(frozen=True)
class SliceMask:
    """Answer for one object on one slice.

    Attributes:
        logits_yx: Low-resolution mask logits in the window; above 0 means inside.
        predicted_iou: The model's estimate of the mask's IoU, 0 to 1.
        object_score: Logit that the object is on the slice at all.
    """

    logits_yx: Floats
    predicted_iou: float
    object_score: float


class Features(Protocol):
    """Encoded slices, opaque to the caller; belongs to the backend that made it."""

    @property
    def window(self) -> Window:
        """What part of the slices was encoded."""

    def __len__(self) -> int:
        """Number of slices."""


@runtime_checkable
class Promptable(Protocol):
    """Encode slices once, then ask for masks as often as wanted."""

    @property
    def backend(self) -> str:
        """`torch`, `onnx` or `triton`."""

    @property
    def model_digest(self) -> Sha256:
        """Digest of the weights."""

    @property
    def input_size(self) -> int:
        """Side of the square input in pixels."""

    def encode(self, slices_bhw: Floats, window: Window) -> Features:
        """Encode grey slices with values in [0, 1]; only `window` of each is seen."""

    def segment(
        self, features: Features, slice_index: int, prompts: Sequence[Prompt]
    ) -> list[SliceMask]:
        """Masks of the objects on one slice, in the order of the prompts, without memory.

        Prompts with the same number of points run as one batch; none is ever padded, because a
        padding point changes the mask. An empty list gives an empty list.
        """


@runtime_checkable
class PromptableVideo(Promptable, Protocol):
    """A backend that also carries an object through the volume by SAM-2's memory."""

    def begin(
        self, features: Features, prompts: Mapping[int, Prompt]
    ) -> tuple[Any, dict[int, SliceMask]]:
        """Segment one object on its prompted slices.

        Returns:
            The memory of the object (opaque; never changed afterwards, so that several passes can
            start from it) and the mask of each prompted slice.
        """

    def track(
        self, features: Features, memory: Any, slice_index: int, *, reverse: bool
    ) -> tuple[Any, SliceMask]:
        """Segment a slice from memory alone; returns the memory with this slice added.

        `reverse` says that slices are visited from the last to the first.
        """
