"""What `data check` says before anything is packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from sssflow.errors import UsageError
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig, SplitConfig

CONFIG = IngestConfig(split=SplitConfig(labelled=1, validation=1, test=1))


def test_a_check_refuses_ct_in_the_8_bit_store_as_packing_does(tmp_path: Path, makers: Any) -> None:
    root = makers.nnunet(tmp_path / "scans", ["a", "b", "c"])
    config = IngestConfig.model_validate({"store": {"kind": "uint8"}})
    for call in (stage.check, lambda c, r: stage.run(c, r, tmp_path / "out")):
        with pytest.raises(UsageError, match="Hounsfield"):
            call(config, root)
    assert not (tmp_path / "out").exists()


def test_files_with_two_voxel_sizes_are_told_and_the_true_one_is_packed(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.nnunet(tmp_path / "scans", ["a", "b", "c"])
    assert not any("voxel sizes" in note for note in stage.check(CONFIG, root).notes)
    for path in root.glob("*Tr/*.nii.gz"):
        image = nib.load(path)
        image.set_qform(image.affine, code=1)
        image.set_sform(np.diag([-1.0, 1.0, 1.0, 1.0]), code=1)
        nib.save(image, path)
    found = stage.check(CONFIG, root)
    (note,) = [note for note in found.notes if "voxel sizes" in note]
    assert "3 case(s), such as a" in note
    assert found.ok
    assert found.spacings_shw_mm == {"8 x 1.25 x 1.5": 3}


@pytest.mark.parametrize("letters", ["RAS", "LSA", "LIA"])
def test_files_along_other_axes_of_the_body_are_told(
    tmp_path: Path, makers: Any, letters: str
) -> None:
    root = makers.nnunet(tmp_path / "scans", ["a", "b", "c"], ["d"])
    assert not any("axes of the files" in note for note in stage.check(CONFIG, root).notes)
    path = root / "imagesUn" / "d_0000.nii.gz"
    image = nib.load(path)  # LAS
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(letters))
    )
    nib.save(image.as_reoriented(turn), path)
    (note,) = [note for note in stage.check(CONFIG, root).notes if "axes of the files" in note]
    assert f"LAS in 3, such as a; {letters} in 1, such as d" in note
