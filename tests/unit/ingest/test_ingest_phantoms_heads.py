"""Head CT phantoms: Hounsfield units, bleeds where they belong, files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from sssflow.errors import UsageError
from sssflow.ingest.phantoms.bleeds import (
    BLEEDS,
    EDH,
    IPH,
    IVH,
    SAH,
    SDH,
    Bleed,
    bleed_shape,
    choose_bleeds,
)
from sssflow.ingest.phantoms.config import HeadConfig, PhantomConfig
from sssflow.ingest.phantoms.head_ct import HeadScan, draw_head
from sssflow.ingest.phantoms.stage import patient_rng, run

SIZES = HeadConfig(in_plane_px=(96, 96), slices=(24, 24), bleeds=(1, 2))
SMALL = PhantomConfig(
    kind="head_ct", patients=2, unlabelled=1, healthy=1, seed=4,
    head_ct=HeadConfig(in_plane_px=(48, 56), slices=(8, 10), slice_mm=(10.0, 10.0)),
)  # fmt: skip


@pytest.fixture(scope="module")
def bleeding() -> dict[int, HeadScan]:
    return {kind: draw_head(patient_rng(1, kind), SIZES, 0.5, kind) for kind in BLEEDS}


@pytest.fixture(scope="module")
def healthy() -> HeadScan:
    return draw_head(patient_rng(2, 0), SIZES, 0.5, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "bhsd"
    run(SMALL, out)
    return out


def skull_cavity(scan: HeadScan) -> np.ndarray:
    """Voxels that bone encloses within their slice, by filling the holes of the bone."""
    bone = ndimage.binary_closing(scan.image > 300, np.ones((1, 3, 3)))
    return np.stack([ndimage.binary_fill_holes(plane) for plane in bone])


def shape_of(bleed: Bleed, inside: list[float], *, x: float = 72.0, y: float = 0.0) -> list[bool]:
    depth = np.array([inside], dtype=np.float32)
    flat = np.ones_like(depth)
    found, _ = bleed_shape(bleed, x * flat, y * flat, 0.0, depth, 50 * flat, 9 * flat, 0 * flat)
    return [bool(v) for v in found[0]]


def test_an_epidural_bleed_is_a_lens_thickest_in_its_middle() -> None:
    bleed = Bleed(kind=EDH, angle=0.0, z=0.0, extent=36.0, thick=16.0, away=0.0, hu=65.0)
    # In the middle 16 mm less 0.3; at an arc of 18 mm (a quarter of a radian) 16 * 3/4 = 12 mm.
    assert shape_of(bleed, [15.0, 16.0]) == [True, False]
    x, y = 72 * np.cos(0.25), 72 * np.sin(0.25)
    assert shape_of(bleed, [11.0, 12.0], x=x, y=y) == [True, False]
    x, y = 72 * np.cos(0.51), 72 * np.sin(0.51)
    assert shape_of(bleed, [0.1], x=x, y=y) == [False]


def test_a_subdural_bleed_keeps_its_thickness_further_along_the_skull() -> None:
    bleed = Bleed(kind=SDH, angle=0.0, z=0.0, extent=72.0, thick=8.0, away=0.0, hu=65.0)
    assert shape_of(bleed, [7.9, 8.1]) == [True, False]
    # Half a radian is 36 mm, half its extent: 8 * sqrt(3/4) = 6.9 mm; a lens would have 6.
    x, y = 72 * np.cos(0.5), 72 * np.sin(0.5)
    assert shape_of(bleed, [6.8, 7.0], x=x, y=y) == [True, False]


def test_a_subarachnoid_bleed_is_a_film_where_there_is_no_furrow() -> None:
    bleed = Bleed(kind=SAH, angle=0.0, z=0.0, extent=40.0, thick=2.0, away=0.0, hu=60.0)
    assert shape_of(bleed, [1.0, 1.2]) == [True, False]


def test_the_first_bleed_has_the_class_asked_for_and_the_count_its_range() -> None:
    rng = np.random.default_rng(0)
    for kind in BLEEDS:
        bleeds = choose_bleeds(rng, (2, 4), kind, 0.5)
        assert bleeds[0].kind == kind
        assert 2 <= len(bleeds) <= 4
        assert {bleed.kind for bleed in bleeds} <= set(BLEEDS)


def test_the_bleed_asked_for_is_in_the_mask(bleeding: dict[int, HeadScan]) -> None:
    assert len(bleeding) == 5
    for kind, scan in bleeding.items():
        assert (scan.mask == kind).sum() >= 20
        assert kind in scan.bleeds
        assert set(scan.bleeds) == set(np.unique(scan.mask).tolist()) - {0}


def test_bleeds_lie_inside_the_skull(bleeding: dict[int, HeadScan]) -> None:
    for scan in bleeding.values():
        assert skull_cavity(scan)[scan.mask > 0].mean() > 0.995


def test_epidural_and_subdural_blood_touches_the_skull_and_blobs_do_not(
    bleeding: dict[int, HeadScan],
) -> None:
    def nearest_bone_px(kind: int) -> float:
        scan = bleeding[kind]
        away = np.stack([ndimage.distance_transform_edt(plane < 300) for plane in scan.image])
        return float(away[scan.mask == kind].min())

    assert nearest_bone_px(EDH) <= 1.5
    assert nearest_bone_px(SDH) <= 1.5
    assert nearest_bone_px(IPH) > 1.5


def test_blood_is_denser_than_brain_and_brain_than_fluid(
    bleeding: dict[int, HeadScan], healthy: HeadScan
) -> None:
    for kind, scan in bleeding.items():
        core = ndimage.binary_erosion(scan.mask == kind, np.ones((1, 3, 3)))
        if core.any():
            assert 50 <= np.median(scan.image[core]) <= 86
    middle = healthy.image[10:16][skull_cavity(healthy)[10:16]]
    brain = middle[(middle > 20) & (middle < 50)]
    assert 25 <= np.median(brain) <= 40
    assert brain.size > 0.8 * ((middle > -10) & (middle < 100)).sum()


def test_air_and_bone_have_their_hounsfield_units(healthy: HeadScan) -> None:
    assert healthy.image.dtype == np.int16
    assert healthy.image.min() >= -1024
    corner = healthy.image[:, :4, :4]
    assert abs(float(corner.mean()) + 1000) < 5
    assert 700 < np.percentile(healthy.image[healthy.image > 300], 95) < 1250


def test_a_healthy_head_has_an_empty_mask(healthy: HeadScan) -> None:
    assert not healthy.mask.any()
    assert healthy.bleeds == ()


def test_ventricular_blood_replaces_fluid_of_the_same_head() -> None:
    # The same generator draws the same head up to the choice of bleeds.
    scan = draw_head(patient_rng(1, 0), SIZES, 0.5, IVH)
    blood = ndimage.binary_erosion(scan.mask == IVH, np.ones((1, 3, 3)))
    assert blood.any()
    columns = np.nonzero(scan.mask == IVH)[2]
    assert abs(columns - 47.5).max() * scan.spacing_mm[0] < 60


def test_the_folder_is_laid_out_like_bhsd(folder: Path) -> None:
    def names(part: str) -> list[str]:
        return sorted(path.name for path in (folder / part).iterdir())

    assert names(".") == ["label_192", "phantoms.json", "unlabel"]
    assert names("label_192") == ["ground truths", "images"]
    assert names("label_192/images") == names("label_192/ground truths")
    assert len(names("label_192/images")) == 2
    assert names("unlabel") == ["anybleed", "nobleed"]
    assert len(names("unlabel/anybleed")) == len(names("unlabel/nobleed")) == 1


def test_names_have_the_form_of_bhsd_and_belong_to_nobody(folder: Path) -> None:
    files = [path.name for path in folder.rglob("*.nii.gz")]
    assert len(files) == 6
    for name in files:
        head, patient, tail, study = name.removesuffix(".nii.gz").split("_")
        assert (head, tail) == ("ID", "ID")
        assert (len(patient), len(study)) == (8, 10)
        int(patient, 16), int(study, 16)
        assert patient.startswith("0000")
        assert study.startswith("0000")


def test_image_and_mask_share_one_left_anterior_superior_grid(folder: Path) -> None:
    for path in sorted((folder / "label_192" / "images").iterdir()):
        image = nib.load(path)
        mask = nib.load(folder / "label_192" / "ground truths" / path.name)
        assert image.shape == mask.shape
        assert np.array_equal(image.affine, mask.affine)
        assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
        assert image.get_data_dtype() == np.int16
        assert mask.get_data_dtype() == np.uint16


def test_the_same_seed_gives_the_same_bytes_and_more_patients_change_none(
    folder: Path, tmp_path: Path
) -> None:
    run(SMALL.model_copy(update={"patients": 1}), tmp_path / "again")
    files = list((tmp_path / "again").rglob("*.nii.gz"))
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "again")).read_bytes()


def test_a_scan_of_an_earlier_run_is_refused_by_name(tmp_path: Path) -> None:
    stale = tmp_path / "label_192" / "images" / "ID_00000abc_ID_0000000abc.nii.gz"
    stale.parent.mkdir(parents=True)
    stale.touch()
    with pytest.raises(UsageError, match="ID_00000abc"):
        run(SMALL, tmp_path)
    assert stale.exists()


def test_a_scan_with_one_bleed_has_one_class() -> None:
    sizes = SIZES.model_copy(update={"bleeds": (1, 1)})
    assert draw_head(patient_rng(9, 0), sizes, 0.5, SDH).bleeds == (SDH,)


def test_no_two_scans_of_a_folder_are_alike(folder: Path) -> None:
    images = [p for p in folder.rglob("*.nii.gz") if "ground" not in p.parent.name]
    assert len(images) == 4
    generators = [
        patient_rng(SMALL.seed, 0, role).integers(2**63)
        for role in ("patients", "unlabelled", "healthy")
    ]
    assert len(set(generators)) == 3
    assert len({p.read_bytes() for p in images}) == 4
