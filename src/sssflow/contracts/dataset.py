"""DatasetManifest: every case of a packed dataset, its role, its grid and its digests.

Axis letters of a packed array: s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sssflow.contracts.base import Contract, ObjectRef, Record, Sha256
from sssflow.errors import DataError

Affine = tuple[
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
]


class Role(StrEnum):
    """What a case may be used for."""

    LABELLED = "labelled"
    UNLABELLED = "unlabelled"
    VALIDATION = "validation"
    TEST = "test"


class Modality(StrEnum):
    """How the scan was made; decides the default intensity rule."""

    MR = "MR"
    CT = "CT"


class Grid(Record):
    """Where the voxels of a case are, exact enough to give every prediction back on it.

    Attributes:
        shape_shw: Shape of the packed array.
        spacing_shw_mm: Voxel size along the packed axes. Meaningless if `spacing_known` is false
            (the source stores none); it is then (1, 1, 1) and millimetre metrics say "voxels".
        affine_ras: 4 x 4, voxel index of the *source file's* axes to RAS millimetres, bit-equal
            to the source.
        axes: Permutation such that `packed = source_array.transpose(axes)`.
    """

    shape_shw: tuple[int, int, int]
    spacing_shw_mm: tuple[float, float, float]
    affine_ras: Affine
    axes: tuple[int, int, int] = (2, 1, 0)
    spacing_known: bool = True

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if min(self.shape_shw) < 1 or min(self.spacing_shw_mm) <= 0:
            raise ValueError("shape and spacing must be positive")
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError("axes must be a permutation of 0, 1, 2")
        return self


class Quantisation(Record):
    """How an 8-bit image was made: `low` became 0, `high` the largest step; beyond: clipped."""

    low: float
    high: float
    clipped_share: float = Field(ge=0, le=1, description="Share of the voxels that were clipped.")
    rms_error: float = Field(ge=0, description="Over all voxels, as a share of high - low.")


class _CaseBase(Record):
    case_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    patient_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    image: ObjectRef
    grid: Grid
    modality: Modality
    phase: str = Field("", description="ED, ES or empty.")
    quantised: Quantisation | None = Field(None, description="None: stored without loss.")


class LabelledCase(_CaseBase):
    """A case whose mask may be read: for training, or for measuring."""

    role: Literal[Role.LABELLED, Role.VALIDATION, Role.TEST]
    label: ObjectRef


class UnlabelledCase(_CaseBase):
    """A case without a mask. The field does not exist, so no reader can reach one."""

    role: Literal[Role.UNLABELLED] = Role.UNLABELLED


Case = Annotated[LabelledCase | UnlabelledCase, Field(discriminator="role")]


class DatasetManifest(Contract):
    """A packed dataset. Cases are sorted by `case_id`; paths are relative to the manifest."""

    schema_name: ClassVar[str] = "sssflow.dataset"

    name: str
    source_layout: str
    class_names: tuple[str, ...] = Field(min_length=2, description="Index = label; 0 background.")
    source_digest: Sha256 = Field(description="Digest over the digests of the source files.")
    split_rule: str = Field(description="How roles were given, in words a reader can check.")
    label_order: tuple[str, ...] = Field(
        (),
        description="The labelled patients in the order in which labels were given; with it a "
        "reader can give fewer of them than this dataset does.",
    )
    cases: tuple[Case, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _cases_are_sound(self) -> Self:
        ids = [case.case_id for case in self.cases]
        if ids != sorted(set(ids)):
            raise ValueError("case ids must be unique and sorted")
        roles: dict[str, Role] = {}
        for case in self.cases:
            if roles.setdefault(case.patient_id, case.role) != case.role:
                raise ValueError(
                    f"patient {case.patient_id} is both {roles[case.patient_id]} and {case.role}"
                )
        return self

    @property
    def class_count(self) -> int:
        """Number of classes with the background."""
        return len(self.class_names)

    def with_role(self, role: Role) -> tuple[LabelledCase | UnlabelledCase, ...]:
        """The cases of one role, sorted by id; empty if there are none."""
        return tuple(case for case in self.cases if case.role == role)

    def labelled(self, role: Role) -> tuple[LabelledCase, ...]:
        """The cases of a role that has masks.

        Raises:
            DataError: `role` is `unlabelled`, whose masks do not exist.
        """
        if role == Role.UNLABELLED:
            raise DataError("Unlabelled cases have no mask.", where=self.name)
        return tuple(c for c in self.cases if isinstance(c, LabelledCase) and c.role == role)

    def select(self, case_ids: Iterable[str]) -> tuple[LabelledCase | UnlabelledCase, ...]:
        """The named cases in manifest order.

        Raises:
            DataError: An id is not in the manifest.
        """
        wanted = set(case_ids)
        unknown = wanted - {case.case_id for case in self.cases}
        if unknown:
            known = [case.case_id for case in self.cases]
            rest = f" and {len(known) - 5} others" if len(known) > 5 else ""
            raise DataError(
                "Unknown case ids.",
                where=self.name,
                expected=", ".join(known[:5]) + rest,
                found=", ".join(sorted(unknown)[:5]),
                action="Name cases as the manifest does.",
            )
        return tuple(case for case in self.cases if case.case_id in wanted)
