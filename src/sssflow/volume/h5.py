"""Reading HDF5 data sets that somebody else wrote: checked first, bounded, then read.

Only the named data set is touched. The mask of a case lies in the same file as its image, so a
reader of images must be able to promise that it never looked at the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sssflow.errors import DataError
from sssflow.storage.plain_file import require_plain_file

Array = NDArray[np.generic]


def read_h5(path: Path, key: str, *, ndim: int, max_voxels: int) -> Array:
    """One data set of a file, as stored (native byte order).

    Raises:
        DataError: The file cannot be opened, is cut or foreign, has no such data set, or the data
            set is of another dimension, not of real numbers, empty, or larger than `max_voxels`.
    """
    with _opened(path) as file:
        dataset = _local_dataset(file, key, path)
        _check_form(dataset, key, path, ndim, max_voxels)
        values = np.asarray(dataset[...])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def shape_of_h5(path: Path, key: str) -> tuple[int, ...]:
    """Shape of a data set, without reading its values.

    Raises:
        DataError: The file cannot be opened or has no such data set.
    """
    with _opened(path) as file:
        return tuple(int(n) for n in _local_dataset(file, key, path).shape)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        # Opening by hand first tells "missing" and "no permission" from "not HDF5".
        require_plain_file(path)
        with path.open("rb"):
            pass
        with h5py.File(path, "r") as file:
            yield file
    except PermissionError:
        raise DataError(
            "The file cannot be read.",
            where=path,
            found="no permission",
            action="Give this user the right to read it.",
        ) from None
    except FileNotFoundError:
        raise DataError(
            "The file is missing.",
            where=path,
            action="Copy it from the original data set, or take it out of the list.",
        ) from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            "The HDF5 file is damaged, cut or of another format.",
            where=path,
            expected="a complete HDF5 file",
            found=" ".join(str(error).split())[:200],
            action="Copy the file again from the original data set.",
        ) from None


def _local_dataset(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    link = file.get(key, getlink=True)
    if link is None:
        raise DataError(
            "The HDF5 file lacks a data set.",
            where=path,
            expected=f"a data set named {key!r}",
            found=f"keys {sorted(file)[:8]}",
            action="Check that the file comes from this data set.",
        )
    node = file[key] if isinstance(link, h5py.HardLink) else None
    # Links, virtual and external data sets could lead a reader to any file of this machine.
    if not isinstance(node, h5py.Dataset) or node.is_virtual or node.external:
        raise DataError(
            "The HDF5 data set is not stored inside its file.",
            where=f"{path}:{key}",
            expected="a plain data set",
            found="a group, a link or an external data set",
            action="Write the values into the file itself.",
        )
    return node


def _check_form(dataset: h5py.Dataset, key: str, path: Path, ndim: int, max_voxels: int) -> None:
    where = f"{path}:{key}"
    if dataset.dtype.kind not in "iuf":
        raise DataError(
            "The HDF5 data set does not hold real numbers.", where=where, found=dataset.dtype
        )
    if dataset.shape is None or len(dataset.shape) != ndim or 0 in dataset.shape:
        raise DataError(
            "The HDF5 data set has another form.",
            where=where,
            expected=f"{ndim} axes, none of them empty",
            found=f"shape {dataset.shape}",
            action="Check that the file comes from this data set.",
        )
    for shape in (dataset.shape, dataset.chunks or dataset.shape):
        if math.prod(int(n) for n in shape) > max_voxels:
            raise DataError(
                "The HDF5 data set is larger than the limit.",
                where=where,
                expected=f"at most {max_voxels} voxels",
                found=f"shape {tuple(shape)}",
                action="If the size is meant, raise `max_voxels`.",
            )
