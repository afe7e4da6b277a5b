"""What `data check` says before anything is packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
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
