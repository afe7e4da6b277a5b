"""One archive of bounded size with what a finished table is worth carrying home for.

Tables, record, results, logs, curves' numbers and scores per case; and of all runs the model with
the best validation Dice among those small enough. Images, predictions and checkpoints to resume
from stay behind.
"""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sssflow.contracts.bench import RunResult
from sssflow.errors import DataError, UsageError
from sssflow.storage.atomic import write_atomically
from sssflow.storage.contracts import load_contract

_LOG = logging.getLogger(__name__)
_MB = 1_000_000
_LOG_TAIL_BYTES = 1 * _MB
_WHOLE = ("table.md", "table.csv", "bench.json")
_OF_RUN = (
    "result.json", "failure.json", "order.json", "log.txt", "train*/run.json",
    "evaluation/evaluation.json", "evaluation/metrics/cases.csv",
)  # fmt: skip
_OF_MODEL = ("model.json", "weights.safetensors")


def collect(folder: Path, archive: Path, *, model_mb: float = 30.0, limit_mb: float = 100.0) -> int:
    """Write `archive`, an uncompressed tar, from the output folder of a benchmark.

    Equal files give equal bytes: names in order, no times, no owners. Links are not followed, and
    of a log only its last megabyte is taken. The archive appears complete or not at all.

    Args:
        folder: Output folder of `bench.stage.run`; not every run need be there.
        archive: File to write; its name ends in `.tar`.
        model_mb: Largest weights that are taken along.
        limit_mb: Largest sum of all files.

    Returns:
        Bytes of all files.

    Raises:
        UsageError: The name does not fit, or the files are more than `limit_mb`.
        DataError: There is no table in `folder`.
        UnavailableError: The disk is full or read-only.
    """
    require_tar(archive)
    if not (folder / _WHOLE[0]).is_file():
        raise DataError(
            "There is no table to collect.",
            where=folder,
            expected=_WHOLE[0],
            action="Run the benchmark into this folder first.",
        )
    files = dict(sorted(_files(folder, model_mb)))
    total = sum(len(content) for content in files.values())
    if total > limit_mb * _MB:
        raise UsageError(
            "The collection is larger than it may be.",
            expected=f"at most {limit_mb:g} MB",
            found=f"{total / _MB:.1f} MB in {len(files)} files",
            action="Collect fewer runs, or copy the folder itself.",
        )
    write_atomically(archive, lambda file: _pack(files, file))
    _LOG.info("%d files, %.1f MB in %s", len(files), total / _MB, archive)
    return total


def require_tar(archive: Path) -> None:
    """Refuse a name that does not say what the file is; asked before hours of training too.

    Raises:
        UsageError: It does not end in `.tar`.
    """
    if archive.suffix != ".tar":
        raise UsageError(
            "The archive is a tar file.",
            where="--collect",
            expected="a name in .tar",
            found=archive,
            action="Choose such a name; the archive is not compressed.",
        )


def best_model(folder: Path, model_mb: float) -> Path | None:
    """The model folder of the run with the best validation Dice whose weights are small enough.

    Runs without a validation Dice come last; of equals the first by name. None without any.
    """
    found = []
    for path in sorted(folder.glob("runs/*/result.json")):
        result = load_contract(RunResult, path)
        model = path.parent / Path(result.model.uri).parent
        size = sum((model / name).stat().st_size for name in _OF_MODEL if (model / name).is_file())
        if 0 < size <= model_mb * _MB:
            dice = result.validation_dice_best
            found.append((-1.0 if dice is None else dice, model))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _files(folder: Path, model_mb: float) -> Iterator[tuple[str, bytes]]:
    places = [folder / name for name in _WHOLE]
    for run in sorted(folder.glob("runs/*")):
        places += [path for pattern in _OF_RUN for path in run.glob(pattern)]
    model = best_model(folder, model_mb)
    if model is not None:
        places += [model / name for name in _OF_MODEL]
    for path in places:
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), _content(path)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if path.suffix == ".txt":
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return file.read()


def _pack(files: dict[str, bytes], file: BinaryIO) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(content), 0o644
            tar.addfile(about, io.BytesIO(content))
