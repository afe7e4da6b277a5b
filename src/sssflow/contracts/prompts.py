"""PromptSet: boxes and points per case and object, in pixels of the case's own grid."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from sssflow.contracts.base import (
    Contract,
    ObjectRef,
    Record,
    Sha256,
    require_known_classes,
)


class SlicePrompt(Record):
    """Prompts of one object on one slice.

    Attributes:
        slice_index: Slice of the packed array, from 0.
        box_xyxy_px: (x0, y0, x1, y1), pixel *indices*, both ends inside the object's extent:
            x is the column (w), y the row (h). None: points only.
        points_xy_px: (x, y) pixel positions.
        point_labels: 1 inside, 0 outside, one per point.
    """

    slice_index: int = Field(ge=0)
    box_xyxy_px: tuple[float, float, float, float] | None = None
    points_xy_px: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[Literal[0, 1], ...] = ()

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if len(self.points_xy_px) != len(self.point_labels):
            raise ValueError("one label per point is needed")
        if self.box_xyxy_px is None and not self.points_xy_px:
            raise ValueError("a prompt needs a box or a point")
        if self.box_xyxy_px is not None:
            x0, y0, x1, y1 = self.box_xyxy_px
            if x1 < x0 or y1 < y0:
                raise ValueError("box must have x0 <= x1 and y0 <= y1")
        return self


class ObjectPrompts(Record):
    """All prompts of one object (one class of one case) and why they were chosen.

    Attributes:
        class_index: Label value, from 1.
        continuity: Share of the foreground of the window that its largest component holds.
        window_start: First slice of the accepted window; -1 if there was no window (fallback).
        window_length: Slices in the window; 0 if there was none.
        accepted: Whether the window reached tau. False: fallback.
        component_voxels: Size of the component that the prompts come from.
    """

    class_index: int = Field(ge=1)
    continuity: float = Field(ge=0, le=1)
    window_start: int = Field(ge=-1)
    window_length: int = Field(ge=0)
    accepted: bool
    component_voxels: int = Field(ge=0)
    slices: tuple[SlicePrompt, ...] = Field(min_length=1)


class CasePrompts(Record):
    """The objects of one case, sorted by class; empty where nothing could be prompted.

    `coarse` is the packed uint8 label map (s,h,w) that the prompts came from, beside the PromptSet;
    None where they came from elsewhere.
    """

    case_id: str
    shape_shw: tuple[int, int, int]
    objects: tuple[ObjectPrompts, ...] = ()
    coarse: ObjectRef | None = None

    @model_validator(mode="after")
    def _prompts_lie_in_the_grid(self) -> Self:
        s, h, w = self.shape_shw
        for prompt in (p for o in self.objects for p in o.slices):
            xs = [x for x, _ in prompt.points_xy_px]
            ys = [y for _, y in prompt.points_xy_px]
            if prompt.box_xyxy_px is not None:
                x0, y0, x1, y1 = prompt.box_xyxy_px
                xs, ys = [*xs, x0, x1], [*ys, y0, y1]
            inside = prompt.slice_index < s and 0 <= min(xs) and max(xs) <= w - 1
            if not (inside and 0 <= min(ys) and max(ys) <= h - 1):
                raise ValueError(f"{self.case_id}: prompt outside the grid {self.shape_shw}")
        return self


class PromptSet(Contract):
    """What the prompts stage made from a model and a dataset. Cases are sorted by `case_id`."""

    schema_name: ClassVar[str] = "sssflow.prompts"

    dataset_digest: Sha256
    model_digest: Sha256 = Field(description="Of the TrainedModel that made the coarse masks.")
    method: str = Field(description="pcsw | reliable_points | simulated")
    config_digest: Sha256
    class_names: tuple[str, ...]
    cases: tuple[CasePrompts, ...]

    @model_validator(mode="after")
    def _objects_have_classes(self) -> Self:
        objects = [(c.case_id, [o.class_index for o in c.objects]) for c in self.cases]
        require_known_classes(self.class_names, objects)
        return self
