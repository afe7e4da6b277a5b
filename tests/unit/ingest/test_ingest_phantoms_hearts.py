"""Heart phantoms: anatomy, moments, files."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from sssflow.errors import UsageError
from sssflow.ingest.phantoms.config import (
    PHANTOM_VERSION,
    HeartConfig,
    PhantomConfig,
    PhantomSummary,
)
from sssflow.ingest.phantoms.heart_anatomy import (
    GROUPS,
    LABEL_OF_TISSUE,
    LV,
    MYOCARDIUM,
    RV,
    Anatomy,
    tissue_map,
)
from sssflow.ingest.phantoms.hearts import HeartScan, draw_heart
from sssflow.ingest.phantoms.stage import patient_rng, run

SIZES = HeartConfig(in_plane_px=(88, 104))
SMALL = PhantomConfig(patients=2, seed=5, hearts=HeartConfig(in_plane_px=(48, 64), slices=(5, 6)))


@pytest.fixture(scope="module")
def scans() -> dict[str, HeartScan]:
    return {
        group: draw_heart(patient_rng(3, i), group, SIZES, 0.6) for i, group in enumerate(GROUPS)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hearts") / "acdc"
    run(SMALL, out)
    return out


def plain_heart(**changes: object) -> Anatomy:
    """A heart of round numbers: cavity radius 20, wall 10, no tilt, no lean, no waves."""
    values: dict[str, object] = {
        "length": 60.0, "cavity": 20.0, "wall": 10.0, "wall_harmonics": (0.0, 0.0, 0.0),
        "shape_harmonics": (0.0, 0.0, 0.0, 0.0), "thin_depth": 0.0, "thin_angle": 0.0,
        "rv_width": 30.0, "rv_reach": 1.0, "rv_bend": 0.0, "rv_apex": 0.2, "rv_top": 1.0,
        "valve_tilt": (0.0, 0.0), "lean": (0.0, 0.0), "papillary": (1.0, -2.0, 0.2),
        "vessel_angle": 0.0, "fat": (0.0, 0.0, 0.0),
    }  # fmt: skip
    return Anatomy(**{**values, **changes})  # type: ignore[arg-type]


def classes_at(heart: Anatomy, n: list[float], t: list[float], u: float) -> list[int]:
    points = [np.array([v], dtype=np.float32) for v in (n, t)]
    tissue = tissue_map(heart, points[0], points[1], np.array([u], dtype=np.float32))
    return [int(v) for v in LABEL_OF_TISSUE[tissue[0, 0]]]


def test_a_line_through_a_plain_heart_at_the_base_meets_each_class_where_it_is_drawn() -> None:
    # Cavity to 20 mm, wall to 30 mm, then the right ventricle up to 0.8 * 30 + 0.95 * 30 = 52.5 mm.
    found = classes_at(
        plain_heart(),
        [-31.0, -29.0, -19.0, 0.0, 19.0, 21.0, 29.0, 31.0, 52.0, 53.0],
        [0.0] * 10,
        0.99,
    )
    assert found == [0, MYOCARDIUM, LV, LV, LV, MYOCARDIUM, MYOCARDIUM, RV, RV, 0]


def test_papillary_muscle_is_counted_as_cavity() -> None:
    heart = plain_heart()
    at = [20 * 0.66 * np.cos(1.0)], [20 * 0.66 * np.sin(1.0)]
    assert classes_at(heart, *at, 0.6) == [LV]
    point = [np.array(v, dtype=np.float32) for v in at]
    tissue = tissue_map(heart, point[0], point[1], np.array([0.6, 0.9], dtype=np.float32))
    assert tissue[0, 0, 0] != tissue[1, 0, 0]  # not blood: higher up there is no muscle here


def test_above_the_valve_and_below_the_apex_nothing_has_a_class() -> None:
    assert classes_at(plain_heart(), [0.0, 25.0], [0.0, 0.0], 1.05) == [0, 0]
    assert classes_at(plain_heart(), [0.0, 25.0], [0.0, 0.0], -0.01) == [0, 0]


def test_an_infarct_thins_the_wall_on_its_side_only() -> None:
    heart = plain_heart(thin_depth=0.5, thin_angle=np.pi)
    assert classes_at(heart, [-24.0, -26.0], [0.0, 0.0], 0.99) == [MYOCARDIUM, 0]
    assert classes_at(heart, [24.0, 26.0], [0.0, 0.0], 0.99) == [MYOCARDIUM, MYOCARDIUM]


def test_every_patient_shows_every_class_at_both_moments(scans: dict[str, HeartScan]) -> None:
    assert len(scans) == 5
    for scan in scans.values():
        for mask in scan.masks.values():
            assert np.unique(mask).tolist() == [0, RV, MYOCARDIUM, LV]


def test_the_cavity_is_smaller_at_end_systole(scans: dict[str, HeartScan]) -> None:
    for scan in scans.values():
        assert (scan.masks["ES"] == LV).sum() < (scan.masks["ED"] == LV).sum()


def test_in_mid_slices_the_cavity_touches_nothing_but_myocardium(
    scans: dict[str, HeartScan],
) -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    seen = 0
    for scan in scans.values():
        mask = scan.masks["ED"]
        held = np.flatnonzero((mask == LV).any(axis=(1, 2)))
        for index in held[2:-1]:
            cavity = mask[index] == LV
            ring = ndimage.binary_dilation(cavity, cross) & ~cavity
            assert set(np.unique(mask[index][ring])) == {MYOCARDIUM}
            seen += 1
    assert seen >= 5


def test_the_right_ventricle_touches_the_septum_and_never_the_left_cavity(
    scans: dict[str, HeartScan],
) -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    for scan in scans.values():
        mask = scan.masks["ED"]
        held = np.flatnonzero((mask == RV).any(axis=(1, 2)))
        plane = mask[held[len(held) // 2]]
        ring = ndimage.binary_dilation(plane == RV, cross) & (plane != RV)
        assert (plane[ring] == MYOCARDIUM).mean() > 0.2
        assert not (plane[ring] == LV).any()


def test_slices_without_heart_exist_at_an_end_of_every_stack(scans: dict[str, HeartScan]) -> None:
    for scan in scans.values():
        empty = ~scan.masks["ES"].any(axis=(1, 2))
        assert empty[0] or empty[-1]
        assert not empty[len(empty) // 2]


def test_the_groups_differ_as_their_names_say(scans: dict[str, HeartScan]) -> None:
    def ratio(group: str, upper: int, lower: int, moment: str = "ED") -> float:
        mask = scans[group].masks[moment]
        return float((mask == upper).sum() / (mask == lower).sum())

    assert ratio("DCM", LV, MYOCARDIUM) > ratio("NOR", LV, MYOCARDIUM)
    assert ratio("NOR", LV, MYOCARDIUM) > ratio("HCM", LV, MYOCARDIUM)
    assert ratio("RV", RV, LV) > ratio("NOR", RV, LV)


def test_blood_is_brighter_than_myocardium_in_every_patient(scans: dict[str, HeartScan]) -> None:
    for scan in scans.values():
        image, mask = scan.images["ED"], scan.masks["ED"]
        assert image[mask == LV].mean() > 1.1 * image[mask == MYOCARDIUM].mean()
        assert image.min() >= 0
        assert image.dtype == np.int16


def test_sizes_stay_in_their_ranges_and_rows_differ_from_columns(
    scans: dict[str, HeartScan],
) -> None:
    for scan in scans.values():
        count, height, width = scan.images["ED"].shape
        assert 5 <= count <= 9
        assert height != width
        assert 88 <= min(height, width) <= max(height, width) <= 104
        assert 1.3 <= scan.spacing_mm[0] == scan.spacing_mm[1] <= 1.8
        assert 8.0 <= scan.spacing_mm[2] <= 10.0


def test_the_folder_is_laid_out_like_acdc(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["patient001", "patient002", "phantoms.json"]
    info = dict(
        line.split(": ") for line in (folder / "patient001" / "Info.cfg").read_text().splitlines()
    )
    assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
    assert int(info["ED"]) == 1 < int(info["ES"]) <= int(info["NbFrame"])
    names = {p.name for p in (folder / "patient001").iterdir()}
    stems = [f"patient001_frame{int(info[moment]):02d}" for moment in ("ED", "ES")]
    expected = {f"{stem}{end}.nii.gz" for stem in stems for end in ("", "_gt")}
    assert names == expected | {"Info.cfg"}


def test_image_and_mask_share_one_declared_grid_in_x_y_z_order(folder: Path) -> None:
    image = nib.load(folder / "patient001" / "patient001_frame01.nii.gz")
    mask = nib.load(folder / "patient001" / "patient001_frame01_gt.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert mask.get_data_dtype() == np.uint8
    assert image.shape == mask.shape
    assert image.shape[2] in (5, 6)
    assert np.array_equal(image.affine, mask.affine)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-4)
    zooms = [float(v) for v in image.header.get_zooms()]
    np.testing.assert_allclose(zooms, np.abs(np.diag(image.affine))[:3], rtol=1e-6)
    drawn = draw_heart(patient_rng(SMALL.seed, 0), "NOR", SMALL.hearts, SMALL.difficulty)
    assert np.array_equal(np.asarray(mask.dataobj), drawn.masks["ED"].transpose(2, 1, 0))


def test_the_same_seed_gives_the_same_bytes_and_more_patients_change_none(
    folder: Path, tmp_path: Path
) -> None:
    run(SMALL.model_copy(update={"patients": 1, "unlabelled": 1}), tmp_path / "again")
    files = [
        p for p in (tmp_path / "again").rglob("*") if p.is_file() and p.name != "phantoms.json"
    ]
    assert len(files) == 5 + 3
    for path in files:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "again")).read_bytes()


def test_another_seed_gives_another_patient(folder: Path, tmp_path: Path) -> None:
    run(SMALL.model_copy(update={"seed": 6, "patients": 1}), tmp_path / "other")
    name = "patient001/patient001_frame01.nii.gz"
    assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_the_compressed_files_hold_no_time_and_no_name(folder: Path) -> None:
    data = (folder / "patient001" / "patient001_frame01.nii.gz").read_bytes()
    assert data[3] == 0  # no flags: no file name
    assert data[4:8] == b"\0\0\0\0"  # no time
    assert len(gzip.decompress(data)) > 352


def test_an_unlabelled_patient_has_frames_and_no_masks(tmp_path: Path) -> None:
    summary = run(SMALL.model_copy(update={"patients": 1, "unlabelled": 1}), tmp_path)
    assert summary.patients == ("patient001",)
    assert summary.unlabelled == ("patient002",)
    assert len(list((tmp_path / "patient002").glob("*.nii.gz"))) == 2
    assert not list((tmp_path / "patient002").glob("*_gt.nii.gz"))


def test_the_summary_on_disk_is_the_summary_returned(folder: Path) -> None:
    summary = PhantomSummary.from_json((folder / "phantoms.json").read_text())
    assert (summary.version, summary.seed) == (PHANTOM_VERSION, SMALL.seed)
    assert summary.patients == ("patient001", "patient002")
    assert summary.config == SMALL


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "patient077").mkdir()
    with pytest.raises(UsageError, match="patient077"):
        run(SMALL, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["patient077"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patients", 0),
        ("difficulty", 1.5),
        ("healthy", 1),
        ("hearts", {"slices": (9, 5)}),
        ("hearts", {"in_plane_px": (8, 9000)}),
    ],
)
def test_settings_outside_their_bounds_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        PhantomConfig.model_validate({key: value})
