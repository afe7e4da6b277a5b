"""Packed arrays: one Blosc2 file per image or label, one chunk per slice, lossless.

Axis letters: s slices, h rows, w columns (a MaskSet puts k classes in front).
"""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import ObjectRef
from sssflow.errors import DataError
from sssflow.storage.atomic import write_bytes
from sssflow.storage.digest import reference, verified_path

Array = NDArray[np.generic]

_MAX_VOXELS = 1 << 31


def write_packed(
    path: Path, array: Array, *, base: Path | None = None, smallest: bool = False
) -> ObjectRef:
    """Write `array` (s,h,w) or (k,s,h,w) atomically; equal arrays give equal bytes.

    With `smallest` it takes longer and each slice is one block of the compressor.

    Raises:
        UnavailableError: The disk is full or read-only.
    """
    slice_shape = (1,) * (array.ndim - 2) + array.shape[-2:]
    # In memory first: Blosc2 reports a full disk as a RuntimeError without a reason.
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=slice_shape,
        blocks=slice_shape if smallest else None,
        contiguous=True,
        cparams=blosc2.CParams(
            codec=blosc2.Codec.ZSTD,
            clevel=9 if smallest else 5,
            filters=[blosc2.Filter.SHUFFLE],
            nthreads=1,
        ),
    )
    write_bytes(path, packed.to_cframe())
    return reference(path, base=base)


def open_packed(path: Path) -> blosc2.NDArray:
    """Open without reading; `opened[i]` decompresses one slice through a memory map.

    Raises:
        DataError: Not a packed array.
    """
    try:
        opened = blosc2.open(str(path), mode="r", mmap_mode="r")
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError("Not a packed array.", where=path, found=error) from None
    if not isinstance(opened, blosc2.NDArray) or int(np.prod(opened.shape)) > _MAX_VOXELS:
        raise DataError("Not a packed array of a bearable size.", where=path)
    return opened


def read_packed(ref: ObjectRef, *, base: Path, shape: tuple[int, ...] | None = None) -> Array:
    """The whole array, after its size, digest and (if given) shape were checked.

    Raises:
        DataError: Missing, changed, not a packed array, or another shape.
    """
    path = verified_path(ref, base=base)
    array = np.asarray(open_packed(path)[...])
    if shape is not None and array.shape != tuple(shape):
        raise DataError(
            "A packed array has another shape than its manifest says.",
            where=path,
            expected=tuple(shape),
            found=array.shape,
        )
    return array
