"""The development scans: the benchmark's own facts must come out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sssflow.contracts.dataset import Role
from sssflow.errors import UsageError
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig, SplitConfig
from sssflow.ingest.layouts import find_layout
from sssflow.ingest.layouts.base import LayoutOptions
from sssflow.ingest.split import assign_roles

pytestmark = pytest.mark.realdata

ACDC_PREFIXES = {
    32: {"patient099"},
    68: {"patient038", "patient050", "patient099"},
    136: {
        "patient021",
        "patient038",
        "patient049",
        "patient050",
        "patient058",
        "patient099",
        "patient100",
    },
}


@pytest.mark.parametrize("lines", ACDC_PREFIXES)
def test_the_slice_prefixes_of_ssl4mis_are_the_published_patients(
    real_acdc: Path, lines: int
) -> None:
    found = find_layout("auto", real_acdc).discover(real_acdc, LayoutOptions())
    assert found.layout == "ssl4mis"
    assert found.problems == ()
    assert len(found.cases) == 160
    by_slices = assign_roles(found, SplitConfig(labelled_slices=lines))
    by_count = assign_roles(found, SplitConfig(labelled=len(ACDC_PREFIXES[lines])))
    assert by_slices.cases == by_count.cases
    labelled = [c.source for c in by_slices.cases if c.role == Role.LABELLED]
    assert {source.patient_id for source in labelled} == ACDC_PREFIXES[lines]
    assert len(labelled) == 2 * len(ACDC_PREFIXES[lines])
    validation = {c.source.patient_id for c in by_slices.cases if c.role == Role.VALIDATION}
    assert len(validation) == 10


@pytest.mark.parametrize("lines", [1, 31, 33, 135, 137])
def test_a_prefix_beside_the_published_ones_is_refused(real_acdc: Path, lines: int) -> None:
    found = find_layout("auto", real_acdc).discover(real_acdc, LayoutOptions())
    with pytest.raises(UsageError) as caught:
        assign_roles(found, SplitConfig(labelled_slices=lines))
    cuts = caught.value.expected.removeprefix("one of ").split(", ")
    assert {"32", "68", "136", "256", "396", "512"} <= set(cuts)


@pytest.mark.slow
def test_left_atrium_with_four_labelled_scans(real_la: Path, tmp_path: Path) -> None:
    config = IngestConfig(split=SplitConfig(labelled=4, validation=4))
    manifest = stage.run(config, real_la, tmp_path / "out")
    names = (real_la / "train.list").read_text().split()
    assert {c.case_id for c in manifest.with_role(Role.LABELLED)} == set(names[:4])
    assert {c.case_id for c in manifest.with_role(Role.VALIDATION)} == set(names[-4:])
    assert {c.grid.shape_shw[0] for c in manifest.cases} == {88}
    digests = {
        hashlib.sha256((tmp_path / "out" / c.image.uri).read_bytes()).hexdigest()
        for c in manifest.cases
    }
    assert digests == {c.image.sha256 for c in manifest.cases}
    assert len(digests) == 20


@pytest.mark.slow
def test_acdc_is_sound_but_for_one_pair_of_equal_patients(real_acdc: Path) -> None:
    # patient074 and patient076 of the benchmark hold the same images with two masks.
    report = stage.check(IngestConfig(split=SplitConfig(labelled=7)), real_acdc)
    assert report.ok
    assert [note.split(":")[0] for note in report.notes if "same image" in note] == [
        "patient074_frame01, patient076_frame01",
        "patient074_frame02, patient076_frame02",
    ]
    assert report.cases_per_role == {"labelled": 14, "unlabelled": 126, "validation": 20, "test": 0}
