"""The proof that an exported graph computes what PyTorch computes, on slices of real cases.

Axis letters: s slices of a case, b batch, c channels (1), k classes, h rows, w columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sssflow.contracts.bundle import ParityFigure
from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role, UnlabelledCase
from sssflow.contracts.model import PatchRule, Preprocessing
from sssflow.errors import DataError, InternalError, UsageError
from sssflow.export.config import ExportConfig
from sssflow.export.onnx import input_sides, torch_logits
from sssflow.networks.predict import resize_images
from sssflow.networks.trained import LoadedModel
from sssflow.networks.volumes import Shape, pad_to, resize_volume, scaled_shape
from sssflow.volume.intensity import normalise
from sssflow.volume.packed import read_packed

Floats = NDArray[np.float32]
Runner = Callable[[Floats], Floats]
"""Logits (b, k, h, w) from slices (b, 1, h, w)."""

TIE_LOGIT = 1e-5
"""Two classes whose logits are closer than this tie: either may win the arg-max."""

_NOT_FINITE = 1e38


@dataclass(frozen=True)
class Slices:
    """Normalised slices of one case (3-D: all), before resizing, and where they come from."""

    image_shw: Floats
    source: str


def check_parity(
    run_graph: Runner, model: LoadedModel, slices: Sequence[Slices], config: ExportConfig
) -> tuple[ParityFigure, ...]:
    """Compare graph and network on every case at both sizes.

    Raises:
        DataError: The network's own logits are not finite.
        InternalError: A difference exceeds the tolerance, or an arg-max mask differs.
    """
    figures = []
    for sides in parity_sizes(model, config):
        for part in slices:
            image_bchw = _prepared(part.image_shw, sides, model.description.preprocessing)
            figures.append(_compare(run_graph, model, image_bchw, part.source, config.tolerance))
    bad = [f for f in figures if f.max_abs_difference > f.tolerance or not f.masks_equal]
    if bad:
        worst = max(bad, key=lambda figure: figure.max_abs_difference)
        raise InternalError(
            "The exported graph does not compute what PyTorch computes; nothing was published.",
            where=f"{worst.source}, input {worst.shape}",
            expected=f"logits within {worst.tolerance:g}, equal arg-max masks",
            found=f"largest difference {worst.max_abs_difference:g}, "
            f"masks {'equal' if worst.masks_equal else 'different'}; "
            f"{len(bad)} of {len(figures)} comparisons failed",
            action="Please report it with the model.json.",
        )
    return tuple(figures)


def parity_sizes(model: LoadedModel, config: ExportConfig) -> tuple[tuple[int, ...], ...]:
    """Training size and, where the size is free, a second one; both multiples of the stride."""
    trained = input_sides(model)
    if not model.net.free_size:
        return (trained,)
    stride = model.net.stride
    second = tuple(math.ceil(side * config.second_scale / stride) * stride for side in trained)
    if second == trained:
        second = tuple(side + stride for side in trained)
    return trained, second


def choose_slices(
    manifest: DatasetManifest, folder: Path, preprocessing: Preprocessing, config: ExportConfig
) -> list[Slices]:
    """Evenly spread slices of the first cases: validation, else test, else labelled ones.

    For a 3-D network whole volumes, of which the middle is compared.

    Raises:
        DataError: A case cannot be read.
    """
    roles = (Role.VALIDATION, Role.TEST, Role.LABELLED, Role.UNLABELLED)
    role = next(role for role in roles if manifest.with_role(role))
    cases = manifest.with_role(role)[: config.parity_cases]
    return [_slices_of(case, folder, preprocessing, config.parity_slices) for case in cases]


def onnx_runner(data: bytes) -> Runner:
    """Run the graph with ONNX Runtime on the CPU, one thread.

    Raises:
        UsageError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UsageError(
            "The parity check needs ONNX Runtime.",
            found=error,
            action="pip install 'sssflow[cpu]' (or 'sssflow[gpu]').",
        ) from None
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(image_bchw: Floats) -> Floats:
        logits: Floats = session.run(None, {session.get_inputs()[0].name: image_bchw})[0]
        return logits

    return run


def _compare(
    run_graph: Runner, model: LoadedModel, image_bchw: Tensor, source: str, tolerance: float
) -> ParityFigure:
    expected_bkhw: Floats = torch_logits(model.net, image_bchw).numpy()
    if not np.isfinite(expected_bkhw).all():
        raise DataError(
            "The model's logits are not finite, so it cannot be exported.",
            where=source,
            action="Train again, for example with a lower learning rate.",
        )
    found_bkhw = run_graph(image_bchw.numpy())
    worst = float(np.abs(found_bkhw - expected_bkhw).max())
    return ParityFigure(
        shape=tuple(image_bchw.shape),
        source=source,
        # A NaN of the graph must fail the gate; no contract may hold one.
        max_abs_difference=worst if math.isfinite(worst) else _NOT_FINITE,
        tolerance=tolerance,
        masks_equal=_same_masks(found_bkhw, expected_bkhw),
    )


def _same_masks(found_bkhw: Floats, expected_bkhw: Floats) -> bool:
    """Whether every pixel has the same arg-max, ties of the expected logits left out."""
    ordered = np.sort(expected_bkhw, axis=1)
    decided = ordered[:, -1] - ordered[:, -2] > TIE_LOGIT
    same = found_bkhw.argmax(1) == expected_bkhw.argmax(1)
    return bool((same | ~decided).all())


def _slices_of(
    case: LabelledCase | UnlabelledCase, folder: Path, preprocessing: Preprocessing, count: int
) -> Slices:
    volume_shw = read_packed(case.image, base=folder, shape=case.grid.shape_shw)
    if preprocessing.patch is not None:
        whole_shw = normalise(volume_shw, preprocessing.intensity)
        return Slices(whole_shw, f"{case.role.value} case {case.case_id}, patch from the middle")
    # The middle of each of `count` equal parts: end slices are often empty.
    total = volume_shw.shape[0]
    chosen = sorted({int((i + 0.5) * total / count) for i in range(min(count, total))})
    image_shw = normalise(volume_shw, preprocessing.intensity)[chosen]
    listed = ", ".join(str(index) for index in chosen)
    return Slices(image_shw, f"{case.role.value} case {case.case_id}, slices {listed}")


def _prepared(image_shw: Floats, sides: tuple[int, ...], preprocessing: Preprocessing) -> Tensor:
    """Network input (b, 1, h, w) of these slices, or (1, 1, s, h, w) of this volume's middle."""
    image = torch.from_numpy(np.ascontiguousarray(image_shw))
    if preprocessing.patch is not None:
        return _middle(image, (sides[0], sides[1], sides[2]), preprocessing, preprocessing.patch)
    size_hw = (sides[0], sides[1])
    resized = resize_images(image.unsqueeze(1), size_hw, preprocessing.image_interpolation)
    return resized.contiguous()


def _middle(image_shw: Tensor, size_shw: Shape, rule: Preprocessing, patch: PatchRule) -> Tensor:
    shape = scaled_shape(image_shw.shape, patch)
    scaled = resize_volume(image_shw[None, None], shape, rule.image_interpolation)[0, 0]
    padded, _ = pad_to(scaled, size_shw)
    starts = [(side - size) // 2 for side, size in zip(padded.shape, size_shw, strict=True)]
    s, h, w = (slice(at, at + size) for at, size in zip(starts, size_shw, strict=True))
    return padded[s, h, w].contiguous()[None, None]
