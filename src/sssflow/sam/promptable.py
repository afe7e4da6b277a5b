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
from torch import Tensor

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
        """Digest of the weights, or of the bundle of graphs that was made from them."""

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


@dataclass(frozen=True)
class Region:
    """One object of one sample of a batch, as a specialist shows it to a generalist.

    Coordinates are indices of the sample's grid in array order: (row, column), or (slice, row,
    column) for volumes. A generalist uses what it understands of points, box and rough mask.

    Attributes:
        sample: Index in the batch.
        points_pd: Clicks; may be none.
        labels_p: 1 inside, 0 outside.
        support: Where the object is believed to be, of the grid's shape; chooses the slices of a
            volume that are prompted.
        box_2d: First and last index along each axis, inclusive; or None.
        rough: Logits of a rough mask on the grid, or None.
        margin_px: What `box_2d` has more than the support on each side, where the grid goes on.
    """

    sample: int
    points_pd: NDArray[np.int64]
    labels_p: NDArray[np.int64]
    support: NDArray[np.bool_]
    box_2d: NDArray[np.int64] | None = None
    rough: Floats | None = None
    margin_px: int = 0


@runtime_checkable
class Generalist(Protocol):
    """A frozen promptable model inside a training step (SemiSAM): a batch in, masks out.

    It is built outside the training, never trained, and no part of a checkpoint.
    """

    @property
    def name(self) -> str:
        """What it is, for the record of a run: kind, size, input."""

    @property
    def digest(self) -> Sha256:
        """Digest of weights and settings: of all that its masks depend on beside the prompts."""

    def answer(self, image: Tensor, regions: Sequence[Region]) -> tuple[Tensor, Tensor]:
        """Mask logits (n, *grid) and estimated IoU (n,) of n objects, float32 and without gradient.

        Args:
            image: (b, 1, h, w) slices or (b, 1, s, h, w) volumes, on any device; the answer is on
                the same. Values in [0, 1] are taken as they are, others brought there by the 0.5
                and 99.5 percentiles of the sample.
            regions: In the order of the answer; none gives tensors of length 0.

        Raises:
            UsageError: It does not take images of this number of axes.
        """
