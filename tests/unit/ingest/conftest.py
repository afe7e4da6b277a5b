"""Makers of tiny data sets in every layout, all values chosen by a seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

AFFINE = np.array(
    [[-1.5, 0.0, 0.0, 10.0], [0.0, 1.25, 0.0, -20.0], [0.0, 0.0, 8.0, 30.0], [0.0, 0.0, 0.0, 1.0]]
)


class Makers:
    """Each method writes one data set; images differ from case to case."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(20)

    def image(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return self.rng.random(shape, dtype=np.float32)

    def label(self, shape: tuple[int, ...], classes: int) -> NDArray[np.uint8]:
        return self.rng.integers(0, classes, shape).astype(np.uint8)

    def h5(self, path: Path, shape: tuple[int, ...], classes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=self.image(shape), compression="gzip")
            file.create_dataset("label", data=self.label(shape, classes), compression="gzip")

    def nifti(
        self, path: Path, array: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)

    def ssl4mis(
        self,
        root: Path,
        train: Mapping[str, int],
        val: Sequence[str] = (),
        test: Sequence[str] = (),
        *,
        flat: bool = False,
        entry: str = "{}",
    ) -> Path:
        """`train`: volume name to number of slices; slice numbers run from 1."""
        folder = root / "data" if flat else root / "data" / "slices"
        lines = []
        for volume, count in train.items():
            for z in self.rng.permutation(count) + 1:
                self.h5(folder / f"{volume}_slice_{z}.h5", (6, 5), 4)
                lines.append(entry.format(f"{volume}_slice_{z}"))
        (root / "train_slices.list").write_text("\n".join(lines) + "\n")
        (root / "train.list").write_text("\n".join(train) + "\n")
        for name, volumes in (("val", val), ("test", test)):
            for volume in volumes:
                self.h5(root / "data" / f"{volume}.h5", (3, 6, 5), 4)
            if volumes:
                (root / f"{name}.list").write_text("\n".join(volumes) + "\n")
        return root

    def acdc(self, root: Path, patients: int, group: str = "", first: int = 1) -> Path:
        for number in range(first, first + patients):
            name = f"patient{number:03d}"
            folder = root / group / name
            folder.mkdir(parents=True)
            (folder / "Info.cfg").write_text("ED: 1\nES: 7\nGroup: NOR\nHeight: 170.0\n")
            for frame in (1, 7):
                path = folder / f"{name}_frame{frame:02d}.nii.gz"
                self.nifti(path, (self.image((6, 5, 3)) * 900).astype(np.int16))
                self.nifti(folder / f"{name}_frame{frame:02d}_gt.nii.gz", self.label((6, 5, 3), 4))
        return root

    def la(self, root: Path, scans: Sequence[str]) -> Path:
        for scan in scans:
            self.h5(root / "2018LA_Seg_Training Set" / scan / "mri_norm2.h5", (6, 5, 4), 2)
        (root / "train.list").write_text("\n".join(scans) + "\n")
        return root

    def head(self, shape: tuple[int, int, int] = (6, 5, 3)) -> NDArray[np.int16]:
        """Air and brain in Hounsfield units."""
        values = np.full(shape, -1000, np.int16)
        values[1:5, 1:4] = (self.image(shape)[1:5, 1:4] * 60).astype(np.int16)
        return values

    def bhsd(self, root: Path, labelled: Iterable[str], unlabelled: Iterable[str] = ()) -> Path:
        for name in labelled:
            self.nifti(root / "label_192" / "images" / f"{name}.nii.gz", self.head())
            path = root / "label_192" / "ground truths" / f"{name}.nii.gz"
            self.nifti(path, self.label((6, 5, 3), 6).astype(np.uint16))
        for name in unlabelled:
            self.nifti(root / "unlabelled_2000" / "anybleed" / f"{name}.nii.gz", self.head())
        return root

    def nnunet(self, root: Path, cases: Sequence[str], unlabelled: Sequence[str] = ()) -> Path:
        for name in cases:
            self.nifti(root / "imagesTr" / f"{name}_0000.nii.gz", self.image((6, 5, 3)))
            self.nifti(root / "labelsTr" / f"{name}.nii.gz", self.label((6, 5, 3), 3))
        for name in unlabelled:
            self.nifti(root / "imagesUn" / f"{name}_0000.nii.gz", self.image((6, 5, 3)))
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "tumour": 2},
            "file_ending": ".nii.gz",
        }
        (root / "dataset.json").write_text(json.dumps(description))
        return root


@pytest.fixture
def makers() -> Makers:
    return Makers()
