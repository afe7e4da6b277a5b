"""The Triton model `segmenter`: raw voxels of a volume in, labels on the same grid out.

The trained network is another model of the same server (`segmenter_net`); here is what stands
before and after it: the intensity rule over the whole volume, and resizing as in the training
(PyTorch's antialiased bilinear interpolation, or exact nearest).

Letters: s slices, h rows and w columns of the volume, k classes, y and x rows and columns of the
network's input.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Array = NDArray[Any]

MAX_VOXELS = 1 << 28


class BadRequest(ValueError):  # noqa: N818 - it is the client's fault, not ours
    """The request cannot be answered; the message says why."""


class TritonPythonModel:
    """See the top of this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters: `preprocessing` (JSON of the bundle) and `batch`."""
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        values = json.loads(args["model_config"])["parameters"]
        self._preprocessing = json.loads(values["preprocessing"]["string_value"])
        self._batch = int(values["batch"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pb = self._pb
        wanted = list(request.requested_output_names())
        try:
            volume = pb.get_input_tensor_by_name(request, "volume").as_numpy()
            tensors = self._segment(volume, keep_logits="logits" in wanted)
        except BadRequest as error:
            return pb.InferenceResponse([], pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        except Exception as error:  # one bad request must not take the model down
            reason = f"{type(error).__name__}: {error}"
            return pb.InferenceResponse([], pb.TritonError(reason[:500]))
        return pb.InferenceResponse([pb.Tensor(name, tensors[name]) for name in wanted])

    def _segment(self, volume_shw: Floats, *, keep_logits: bool) -> dict[str, Array]:
        image_syx = prepared(volume_shw, self._preprocessing)
        labels, kept = [], []
        for start in range(0, len(image_syx), self._batch):
            logits_bkyx = self._network(image_syx[start : start + self._batch, None])
            labels.append(on_grid(logits_bkyx, volume_shw.shape[1:], self._preprocessing))
            kept += [logits_bkyx] if keep_logits else []
        found: dict[str, Array] = {"labels": np.concatenate(labels)}
        return found | ({"logits": np.concatenate(kept)} if keep_logits else {})

    def _network(self, image_b1yx: Floats) -> Floats:
        pb = self._pb
        request = pb.InferenceRequest(
            model_name="segmenter_net",
            requested_output_names=["logits_bkhw"],
            inputs=[pb.Tensor("image_bchw", np.ascontiguousarray(image_b1yx))],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
        )
        answer = request.exec()
        if answer.has_error():
            raise RuntimeError(f"segmenter_net: {answer.error().message()}")
        # A copy: the server takes its memory back with the answer.
        return np.array(pb.get_output_tensor_by_name(answer, "logits_bkhw").as_numpy())


def prepared(volume_shw: Floats, preprocessing: Mapping[str, Any]) -> Floats:
    """Network input (s, y, x) of raw voxels.

    Raises:
        BadRequest: The volume is empty, too large, or holds a value that is not finite.
    """
    if volume_shw.size == 0 or volume_shw.size > MAX_VOXELS:
        raise BadRequest(f"volume: expected 1 to {MAX_VOXELS} voxels, found {volume_shw.size}")
    if not np.isfinite(volume_shw).all():
        raise BadRequest("volume: a value is not finite")
    image_shw = scaled(volume_shw, preprocessing["intensity"])
    size_hw = tuple(preprocessing["size_hw"])
    return resized(image_shw, (size_hw[0], size_hw[1]), preprocessing["image_interpolation"])


def on_grid(
    logits_bkyx: Floats, shape_hw: tuple[int, ...], preprocessing: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """Labels (b, h, w) of network logits."""
    rule = preprocessing["prediction_interpolation"]
    grown = resized(logits_bkyx, (shape_hw[0], shape_hw[1]), rule)
    labels: NDArray[np.uint8] = grown.argmax(axis=1).astype(np.uint8)
    return labels


def scaled(volume_shw: Floats, rule: Mapping[str, Any]) -> Floats:
    """The intensity rule over the whole volume; a constant volume becomes zero."""
    volume = volume_shw.astype(np.float32)
    kind = rule["kind"]
    if kind == "none":
        return volume
    if kind == "zscore":
        deviation = float(volume.std())
        if deviation == 0:
            return np.zeros_like(volume)
        standard: Floats = (volume - np.float32(volume.mean())) / np.float32(deviation)
        return standard
    if kind == "minmax":
        low, high = float(volume.min()), float(volume.max())
    elif kind == "percentile":
        low, high = (float(v) for v in np.percentile(volume, (rule["low_pct"], rule["high_pct"])))
    else:
        low, high = rule["window_low"], rule["window_high"]
    if high <= low:
        return np.zeros_like(volume)
    share: Floats = (volume - np.float32(low)) / np.float32(high - low)
    return np.clip(share, np.float32(0), np.float32(1))


def resized(maps: Floats, size_hw: tuple[int, int], interpolation: str) -> Floats:
    """Resize the last two axes."""
    if tuple(maps.shape[-2:]) == size_hw:
        return maps
    rows_yh = weights(maps.shape[-2], size_hw[0], interpolation)
    columns_xw = weights(maps.shape[-1], size_hw[1], interpolation)
    found: Floats = np.matmul(rows_yh, np.matmul(maps, columns_xw.T))
    return found


@lru_cache(maxsize=32)
def weights(before: int, after: int, interpolation: str) -> Floats:
    """Row i holds how much of each old cell goes into new cell i; every row adds up to 1.

    linear: a triangle as wide as the larger of old and new cell, as PyTorch with `antialias=True`.
    nearest: the old cell that holds the middle of the new one (`nearest-exact`).
    """
    ratio = before / after
    middle = (np.arange(after) + 0.5) * ratio
    if interpolation == "nearest":
        table = np.zeros((after, before), np.float32)
        table[np.arange(after), np.minimum(middle.astype(int), before - 1)] = 1
        return table
    reach = max(ratio, 1.0)
    distance = np.abs(np.arange(before)[None] + 0.5 - middle[:, None]) / reach
    triangle = np.clip(1 - distance, 0, None)
    return np.asarray(triangle / triangle.sum(axis=1, keepdims=True), dtype=np.float32)
