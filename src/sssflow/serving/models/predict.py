"""The Triton model `sam2_predict`: an image and ragged prompts in, one mask per object out.

Encoder and decoder are other models of the same server. What the encoder gave for an image is kept
(by SHA-256 of the pixels, oldest use dropped first), so that further prompts cost the decoder only.

Letters: l objects, p points of all objects together, n points of one object, y and x rows and
columns of a low-resolution mask (a quarter of the input side).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Array = NDArray[Any]

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
# What a pixel value (column) becomes in each channel (row): looked up, not computed per pixel.
NORMALISED = np.ascontiguousarray(
    ((np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - MEAN) / DEVIATION).T
)
PAD_LABEL = -1
MAX_OBJECTS = 32
MAX_POINTS = 32
FEATURES = ("feat_s0", "feat_s1", "embed")


class BadRequest(ValueError):  # noqa: N818 - it is the client's fault, not ours
    """The request cannot be answered; the message says why."""


class TritonPythonModel:
    """See the top of this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters: `cache_mib`, `chunk`, `multimask_min_points`, `..._max_points`."""
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        values = json.loads(args["model_config"])["parameters"]
        given = {key: value["string_value"] for key, value in values.items()}
        self._chunk = int(given["chunk"])
        self._ambiguous = (int(given["multimask_min_points"]), int(given["multimask_max_points"]))
        self._cache = FeatureCache(int(given["cache_mib"]) << 20)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pb = self._pb
        try:
            tensors = self._predict(_given(request))
        except BadRequest as error:
            return pb.InferenceResponse([], pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        except Exception as error:  # one bad request must not take the model down
            reason = f"{type(error).__name__}: {error}"
            return pb.InferenceResponse([], pb.TritonError(reason[:500]))
        wanted = list(request.requested_output_names())
        return pb.InferenceResponse([pb.Tensor(name, tensors[name]) for name in wanted])

    def _predict(self, given: Mapping[str, Array]) -> dict[str, Array]:
        objects = read_prompts(given)
        image = given["image"]
        key = hashlib.sha256(image.tobytes()).digest()
        features = self._cache.get(key)
        if features is None:
            features = self._call("sam2_encoder", {"image": normalised(image)}, FEATURES)
            self._cache.put(key, features)
        cells = image.shape[0] // 4
        masks = np.empty((len(objects), 4, cells, cells), np.float32)
        iou = np.empty((len(objects), 4), np.float32)
        score = np.empty((len(objects), 1), np.float32)
        for members in groups(objects, self._chunk):
            feeds = decoder_inputs([objects[i] for i in members], cells)
            found = self._call(
                "sam2_decoder", {**features, **feeds}, ("masks", "iou", "object_score")
            )
            masks[members], iou[members] = found["masks"], found["iou"]
            score[members] = found["object_score"]
        best = choose([item.count for item in objects], iou, self._ambiguous)
        rows = np.arange(len(objects))
        return {
            "masks": masks[rows, best],
            "iou": iou[rows, best],
            "object_score": score[:, 0],
            "all_masks": masks,
            "all_iou": iou,
        }

    def _call(
        self, model: str, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> dict[str, Array]:
        pb = self._pb
        request = pb.InferenceRequest(
            model_name=model,
            requested_output_names=list(wanted),
            inputs=[pb.Tensor(name, np.ascontiguousarray(v)) for name, v in feeds.items()],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
        )
        answer = request.exec()
        if answer.has_error():
            raise RuntimeError(f"{model}: {answer.error().message()}")
        # A copy: the server takes its memory back with the answer.
        return {
            name: np.array(pb.get_output_tensor_by_name(answer, name).as_numpy()) for name in wanted
        }


class Prompts:
    """The prompts of one object.

    Attributes:
        points_n2: (x, y) input pixel indices; a box is its two corners, before the other points.
        labels_n: 1 inside, 0 outside, 2 and 3 box corners.
        mask_1yx: Logits of a rough mask, or None.
    """

    def __init__(self, points_n2: Floats, labels_n: Array, mask_1yx: Floats | None) -> None:
        self.points_n2, self.labels_n, self.mask_1yx = points_n2, labels_n, mask_1yx

    @property
    def count(self) -> int:
        """Points, without the pad point."""
        return len(self.labels_n)


class FeatureCache:
    """Features by image, at most `limit_bytes` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._held: OrderedDict[bytes, dict[str, Array]] = OrderedDict()

    def get(self, key: bytes) -> dict[str, Array] | None:
        """What was put last under this key, if it is still here."""
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: bytes, features: dict[str, Array]) -> None:
        """Keep features; what was not asked for longest goes first."""
        self._held[key] = features
        self._held_bytes += _bytes_of(features)
        while self._held_bytes > self._limit_bytes and self._held:
            _, old = self._held.popitem(last=False)
            self._held_bytes -= _bytes_of(old)


def read_prompts(given: Mapping[str, Array]) -> list[Prompts]:
    """Cut the flat points into objects.

    Raises:
        BadRequest: No objects or too many, counts that do not add up, unknown labels, values that
            are not finite, or an object with neither points nor mask.
    """
    counts, points, labels = given["point_counts"], given["point_coords"], given["point_labels"]
    if not 1 <= len(counts) <= MAX_OBJECTS:
        raise BadRequest(f"point_counts: expected 1 to {MAX_OBJECTS} objects, found {len(counts)}")
    if counts.min() < 0 or counts.max() > MAX_POINTS:
        raise BadRequest(f"point_counts: expected 0 to {MAX_POINTS} points per object")
    if not len(points) == len(labels) == int(counts.sum()):
        raise BadRequest(
            f"point_counts: they add up to {int(counts.sum())}, but there are {len(points)} "
            f"point_coords and {len(labels)} point_labels"
        )
    if not np.isfinite(points).all():
        raise BadRequest("point_coords: a value is not finite")
    if not np.isin(labels, (0, 1, 2, 3)).all():
        raise BadRequest("point_labels: expected 0, 1, 2 or 3")
    masks, has_mask = _masks(given, len(counts))
    found, start = [], 0
    for index, count in enumerate(counts):
        part = slice(start, start := start + int(count))
        mask = masks[index] if has_mask[index] else None
        if count == 0 and mask is None:
            raise BadRequest(f"object {index}: it has neither points nor a mask")
        found.append(Prompts(points[part], labels[part], mask))
    return found


def _masks(given: Mapping[str, Array], objects: int) -> tuple[Array, Array]:
    masks, has_mask = given.get("mask_input"), given.get("has_mask")
    if masks is None and has_mask is None:
        return np.empty(0, np.float32), np.zeros(objects, bool)
    if masks is None or len(masks) != objects:
        raise BadRequest("mask_input: expected one mask per object, as `has_mask` is given")
    if has_mask is None:
        has_mask = np.ones(objects, np.float32)
    if len(has_mask) != objects or not np.isin(has_mask, (0, 1)).all():
        raise BadRequest("has_mask: expected 0 or 1 per object")
    if not np.isfinite(masks).all():
        raise BadRequest("mask_input: a value is not finite")
    return masks, has_mask > 0


def groups(objects: Sequence[Prompts], chunk: int) -> list[list[int]]:
    """Indices of objects with equally many points, at most `chunk` together.

    None is padded to the length of another: a pad point changes the mask.
    """
    by_count: dict[int, list[int]] = {}
    for index, item in enumerate(objects):
        by_count.setdefault(item.count, []).append(index)
    return [
        members[start : start + chunk]
        for members in by_count.values()
        for start in range(0, len(members), chunk)
    ]


def decoder_inputs(objects: Sequence[Prompts], cells: int) -> dict[str, Array]:
    """Prompts of the decoder for objects with equally many points.

    SAM-2 was trained with one pad point wherever there is a point, and none where there is only a
    mask.
    """
    points = np.stack([item.points_n2 for item in objects]).astype(np.float32)
    labels = np.stack([item.labels_n for item in objects]).astype(np.int32)
    if points.shape[1]:
        points = np.pad(points, ((0, 0), (0, 1), (0, 0)))
        labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=PAD_LABEL)
    masks = np.zeros((len(objects), 1, cells, cells), np.float32)
    has_mask = np.zeros(len(objects), np.float32)
    for index, item in enumerate(objects):
        if item.mask_1yx is not None:
            masks[index], has_mask[index] = item.mask_1yx, 1
    return {
        "point_coords": points.reshape(len(objects), -1, 2),
        "point_labels": labels,
        "mask_input": masks,
        "has_mask": has_mask,
    }


def choose(counts: Sequence[int], iou_l4: Floats, ambiguous: tuple[int, int]) -> Array:
    """Which of the four masks is kept: few points are ambiguous, then the best of masks 1 to 3."""
    several = iou_l4[:, 1:].argmax(axis=1) + 1
    asked = np.array([ambiguous[0] <= count <= ambiguous[1] for count in counts])
    return np.where(asked, several, 0)


def normalised(image_yx3: Array) -> Floats:
    """(1, 3, S, S) for the encoder from uint8 pixels (S, S, 3)."""
    planes_3yx = np.ascontiguousarray(image_yx3.transpose(2, 0, 1))
    found = np.empty((1, *planes_3yx.shape), np.float32)
    for channel, plane_yx in enumerate(planes_3yx):
        # With "raise", the default, numpy would look a second copy up.
        np.take(NORMALISED[channel], plane_yx, out=found[0, channel], mode="clip")
    return found


def _given(request: Any) -> dict[str, Array]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _bytes_of(features: Mapping[str, Array]) -> int:
    return sum(value.nbytes for value in features.values())
