"""NIfTI files: a reader that trusts nothing the header says, and a writer for masks.

Neither nibabel nor SimpleITK is a check by itself: each accepts a part of the broken files that
the other refuses (cut data, affines of NaN, a declared size of terabytes). So the header is parsed
alone, bounded, and only then are the voxels read, to the last byte (which checks the gzip CRC).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from sssflow.contracts.dataset import Grid
from sssflow.errors import DataError
from sssflow.storage.atomic import write_atomically
from sssflow.storage.plain_file import require_plain_file
from sssflow.volume.geometry import (
    FloatArray,
    Volume,
    affine_of,
    check_affine,
    gives_voxel_size,
    grid_from_affine,
    spacing_along_source_mm,
    to_packed_axes,
    to_source_axes,
)

Array = NDArray[np.generic]

# nibabel ships type marks, yet most of its functions have none.
_Header1: Any = nib.Nifti1Header
_Header2: Any = nib.Nifti2Header
_Image1: Any = nib.Nifti1Image
_Image2: Any = nib.Nifti2Image

NIFTI_ENDINGS = (".nii.gz", ".nii")
"""How names of NIfTI files end, in small letters; the usual one first."""
_AXES = (2, 1, 0)
_LARGEST_OFFSET = 1 << 24
_LARGEST_TRAILER = 1 << 16
_LARGEST_FORM_CODE = 5
_MILLIMETRE = 2
_OTHER_UNITS = {1: " (metre)", 3: " (micrometre)"}
_BLOCK_BYTES = 1 << 22
_GZIP_MAGIC = b"\x1f\x8b"
_COPY_AGAIN = "Copy the file again from its source, or export it again."
_INTEGERS: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(name) for name in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64")
)


def read_nifti(path: Path, *, max_voxels: int) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 single file (`.nii`, `.nii.gz`) as (s, h, w) = (z, y, x).

    Integers stay integers (slope and intercept are applied; integral ones keep the result
    integral), floats become float32. Trailing axes of length 1 are dropped. Values are not
    checked for NaN; that is the caller's, who knows the case.

    The grid is the sform's, else the qform's. Where the sform contradicts the voxel size of the
    header (that of ACDC's own files is reported to say 1 mm), the qform is taken, as ITK does.

    Raises:
        DataError: Missing, unreadable, cut, wrong CRC, foreign, not three-dimensional, larger
            than `max_voxels`, neither qform nor sform declared, lengths in another unit than mm,
            an affine without sense, or two voxel sizes and no qform.
    """
    try:
        require_plain_file(path)
        with path.open("rb") as raw:
            return _read(raw, path, max_voxels)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            "The compressed file is cut or damaged.",
            where=path,
            expected="a complete gzip stream with a right checksum",
            found=error,
            action=_COPY_AGAIN,
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """What to raise when the system refuses to give the bytes of a scan."""
    return DataError(
        "The file cannot be read.",
        where=path,
        found=error.strerror or error,
        action="Check that it is there and that this user may read it.",
    )


def write_label_like(path: Path, label_shw: NDArray[np.integer[Any]], grid: Grid) -> None:
    """Write a mask as uint8 NIfTI on the grid of its source; the affine reads back bit-equal.

    A float32 sform holds most affines exactly; one that came from a quaternion needs the qform;
    NIfTI-2 (float64) is the last resort. Equal input gives equal bytes. A grid without known
    spacing is written with unit voxels.

    Args:
        path: Ends in `.nii` or `.nii.gz`.
        label_shw: Classes 0 to 255.
        grid: The grid of the case.

    Raises:
        DataError: Shape differs from the grid, or a value does not fit into uint8.
        UnavailableError: The disk is full or read-only.
    """
    if label_shw.size and (label_shw.min() < 0 or label_shw.max() > 255):
        raise DataError("A mask value does not fit into uint8.", where=path)
    data = to_source_axes(label_shw, grid).astype(np.uint8)
    payload = _image_with_exact_affine(data, affine_of(grid)).to_bytes()
    if path.name.endswith(".gz"):
        payload = gzip.compress(payload, compresslevel=6, mtime=0)
    write_atomically(path, lambda file: file.write(payload))


def _read(raw: BinaryIO, path: Path, max_voxels: int) -> Volume:
    stream: Any = raw
    if path.name.lower().endswith(".gz"):
        if raw.read(2) != _GZIP_MAGIC:
            raise DataError(
                "The file is not what its name says.",
                where=path,
                expected="gzip data",
                action=_COPY_AGAIN,
            )
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw, mode="rb")
    header = _read_header(stream, path)
    shape = _checked_shape(header, path, max_voxels)
    dtype = _checked_dtype(header, path)
    slope, intercept = _checked_scaling(header, path)
    _require_millimetres(header, path)
    affine, sform_set_aside = _checked_affine(header, path)
    offset = _checked_offset(header, path)
    stream.read(offset - int(header["sizeof_hdr"]))
    source = _read_voxels(stream, shape, dtype, path)
    array_shw = to_packed_axes(source, _AXES)
    return Volume(
        _as_stored_or_scaled(array_shw, slope, intercept),
        grid_from_affine(shape, affine, axes=_AXES),
        sform_set_aside,
    )


def _read_header(stream: Any, path: Path) -> Any:
    head = stream.read(540)
    for kind, size, magic in (
        (_Header1, 348, (head[344:348], b"n+1\0")),
        (_Header2, 540, (head[4:8], b"n+2\0")),
    ):
        if len(head) < size or magic[0] != magic[1]:
            continue
        try:
            # nibabel's own check repairs some faults and prints; ours below refuses them.
            header = kind(head[:size], check=False)
        except (HeaderDataError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise DataError(
                "The NIfTI header is damaged.", where=path, found=error, action=_COPY_AGAIN
            ) from None
        if int(header["sizeof_hdr"]) != size:
            break
        # The first read may have gone past a NIfTI-1 header.
        stream.seek(size)
        return header
    raise DataError(
        "The file is not a single-file NIfTI.",
        where=path,
        expected="a header of 348 or 540 bytes with the mark n+1 or n+2",
        found=f"{len(head)} bytes beginning {head[:16]!r}",
        action="Convert it to .nii.gz (a pair of .hdr and .img is not read).",
    )


def _checked_shape(header: Any, path: Path, max_voxels: int) -> tuple[int, int, int]:
    dims = [int(n) for n in header["dim"]]
    used = dims[1 : dims[0] + 1] if 0 < dims[0] <= 7 else []
    if len(used) < 3 or min(used) < 1 or any(n != 1 for n in used[3:]):
        raise DataError(
            "The NIfTI file is not one three-dimensional volume.",
            where=path,
            expected="three axes of at least one voxel",
            found=f"dim {dims}",
            action="Give one file per volume; split time series and channels first.",
        )
    if math.prod(used) > max_voxels:
        raise DataError(
            "The NIfTI file declares more voxels than the limit.",
            where=path,
            expected=f"at most {max_voxels} voxels",
            found=f"{' x '.join(map(str, used))}",
            action="If the size is meant, raise `max_voxels`; else the header is damaged.",
        )
    return used[0], used[1], used[2]


def _checked_dtype(header: Any, path: Path) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError, TypeError) as error:
        raise DataError(
            "The NIfTI header names no known data type.",
            where=path,
            found=error,
            action=_COPY_AGAIN,
        ) from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(
            "The NIfTI voxels are not plain real numbers.",
            where=path,
            expected="integers or floats of at most 64 bits",
            found=dtype,
            action="Convert the file to a scalar type.",
        )
    return dtype


def _checked_scaling(header: Any, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means by convention that neither is set."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise DataError(
            "The NIfTI slope or intercept is not finite.",
            where=path,
            found=f"slope {slope}, intercept {intercept}",
            action=_COPY_AGAIN,
        )
    return slope, intercept


def _checked_affine(header: Any, path: Path) -> tuple[FloatArray, bool]:
    """Voxel indices to mm, and whether the sform had to be set aside for it."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0 or not set(codes) <= set(range(_LARGEST_FORM_CODE + 1)):
        raise DataError(
            "The NIfTI file declares no orientation.",
            where=path,
            expected=f"a sform or qform code of 1 to {_LARGEST_FORM_CODE}",
            found=f"sform code {codes[0]}, qform code {codes[1]}",
            action="Export the scan again with its orientation; a guess could mirror the patient.",
        )
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # the standard reads an unset handedness as 1
    affine = _affine_of(header.get_best_affine, path)
    size_mm = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    told = bool((np.isfinite(size_mm) & (size_mm > 0)).all())
    if codes[0] == 0 or not told or gives_voxel_size(affine, size_mm):
        return affine, False
    if codes[1] > 0:
        return _affine_of(header.get_qform, path), True
    raise DataError(
        "The NIfTI header gives two voxel sizes.",
        where=path,
        expected="the same by the columns of its sform and by pixdim",
        found=f"{_sizes(spacing_along_source_mm(affine))} mm and {_sizes(size_mm)} mm, no qform",
        action="Correct the one that is wrong; lengths and volumes depend on it.",
    )


def _affine_of(form: Callable[[], Any], path: Path) -> FloatArray:
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(form(), dtype=np.float64)
    except (HeaderDataError, ValueError, FloatingPointError) as error:
        raise DataError(
            "The NIfTI orientation is damaged.", where=path, found=error, action=_COPY_AGAIN
        ) from None
    check_affine(affine, path)
    return affine


def _sizes(values_mm: FloatArray) -> str:
    return " x ".join(f"{value:.4g}" for value in values_mm)


def _require_millimetres(header: Any, path: Path) -> None:
    """Refuse lengths that the header itself says are metres or micrometres; unsaid means mm."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, _MILLIMETRE):
        raise DataError(
            "The NIfTI lengths are not in millimetres.",
            where=path,
            expected="the unit of length 2 (mm) or 0 (not said)",
            found=f"unit {unit}{_OTHER_UNITS.get(unit, '')}",
            action="Convert the affine to millimetres, or correct the unit in the header.",
        )


def _checked_offset(header: Any, path: Path) -> int:
    offset = float(header["vox_offset"])
    smallest = int(header["sizeof_hdr"])
    if not (smallest <= offset <= _LARGEST_OFFSET and offset == int(offset)):
        raise DataError(
            "The NIfTI voxel offset is out of range.",
            where=path,
            expected=f"{smallest} to {_LARGEST_OFFSET}",
            found=offset,
            action=_COPY_AGAIN,
        )
    return int(offset)


def _read_voxels(
    stream: Any, shape: tuple[int, int, int], dtype: np.dtype[Any], path: Path
) -> Array:
    wanted = math.prod(shape) * dtype.itemsize
    data = bytearray()
    # In blocks: a header may promise what the file does not hold, and memory follows the file.
    while len(data) < wanted and (block := stream.read(min(_BLOCK_BYTES, wanted - len(data)))):
        data += block
    trailer = len(stream.read(_LARGEST_TRAILER + 1))
    if len(data) < wanted or trailer > _LARGEST_TRAILER:
        more = f"more than {trailer - 1} bytes too many" if len(data) == wanted else f"{len(data)}"
        raise DataError(
            "The NIfTI file does not hold what its header says.",
            where=path,
            expected=f"{wanted} bytes of voxels ({' x '.join(map(str, shape))} {dtype})",
            found=more,
            action=_COPY_AGAIN,
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F")


def _as_stored_or_scaled(values: Array, slope: float, intercept: float) -> Array:
    if (slope, intercept) == (1.0, 0.0):
        kind = values.dtype.newbyteorder("=") if values.dtype.kind in "iu" else np.dtype("f4")
        with np.errstate(over="ignore"):
            return values.astype(kind, copy=False)
    if values.dtype.kind in "iu" and slope == int(slope) and intercept == int(intercept):
        scaled = _scaled_integers(values, int(slope), int(intercept))
        if scaled is not None:
            return scaled
    with np.errstate(over="ignore", invalid="ignore"):
        return (values.astype(np.float64) * slope + intercept).astype(np.float32)


def _scaled_integers(values: Array, slope: int, intercept: int) -> Array | None:
    """`values * slope + intercept` in the smallest integer type; None if none holds it."""
    ends = [int(values.min()), int(values.max())]
    results = [end * slope + intercept for end in ends]
    work = _smallest_integer([*ends, *(end * slope for end in ends), *results, slope, intercept])
    final = _smallest_integer(results)
    if work is None or final is None:
        return None
    scaled: Array = values.astype(work) * work.type(slope) + work.type(intercept)
    return scaled.astype(final)


def _smallest_integer(numbers: list[int]) -> np.dtype[Any] | None:
    for dtype in _INTEGERS:
        limits = np.iinfo(dtype)
        if limits.min <= min(numbers) and max(numbers) <= limits.max:
            return dtype
    return None


def _image_with_exact_affine(data: Array, affine: FloatArray) -> Any:
    with_sform = _Image1(data, affine)
    with_sform.set_qform(affine, code=1, strip_shears=True)
    with_sform.set_sform(affine, code=1)
    with_qform = _Image1(data, affine)
    with_qform.set_qform(affine, code=1, strip_shears=True)
    with_qform.set_sform(None, code=0)
    for image in (with_sform, with_qform):
        image.header.set_xyzt_units("mm")
        if np.array_equal(image.header.get_best_affine(), affine):
            return image
    exact = _Image2(data, affine)
    exact.set_sform(affine, code=1)
    exact.header.set_xyzt_units("mm")
    return exact
