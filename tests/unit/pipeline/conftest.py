"""A manifest made by hand, and contracts that refer to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import (
    DatasetManifest,
    Grid,
    LabelledCase,
    Modality,
    Role,
    UnlabelledCase,
)
from sssflow.storage.digest import sha256_bytes

REF = ObjectRef(uri="x", size_bytes=0, sha256=sha256_bytes(b""))
AFFINE = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))


def make_manifest(slices: dict[str, int], roles: dict[str, Role]) -> DatasetManifest:
    """Cases of the given numbers of slices (10 x 10 pixels); unlabelled unless told."""
    cases: list[LabelledCase | UnlabelledCase] = []
    for name in sorted(slices):
        grid = Grid(
            shape_shw=(slices[name], 10, 10), spacing_shw_mm=(1.0, 1.0, 1.0), affine_ras=AFFINE
        )
        facts = {
            "case_id": name,
            "patient_id": name,
            "image": REF,
            "grid": grid,
            "modality": Modality.MR,
        }
        role = roles.get(name, Role.UNLABELLED)
        if role == Role.UNLABELLED:
            cases.append(UnlabelledCase(**facts))
        else:
            cases.append(LabelledCase(role=role, label=REF, **facts))
    return DatasetManifest(
        name="made-by-hand",
        source_layout="none",
        class_names=("background", "disc"),
        source_digest="0" * 64,
        split_rule="by hand",
        cases=tuple(cases),
    )


@pytest.fixture
def manifest_of() -> Callable[[dict[str, int], dict[str, Role]], DatasetManifest]:
    """Makes a manifest from numbers of slices and roles."""
    return make_manifest


@pytest.fixture
def manifest() -> DatasetManifest:
    """Unlabelled a (1 slice), b (5), c (4), d (2); one case of every other role."""
    return make_manifest(
        {"a": 1, "b": 5, "c": 4, "d": 2, "l": 3, "t": 3, "v": 3},
        {"l": Role.LABELLED, "t": Role.TEST, "v": Role.VALIDATION},
    )
