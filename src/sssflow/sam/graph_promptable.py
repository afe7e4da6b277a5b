"""`PromptableVideo` on SAM-2's four ONNX graphs, whoever runs them.

Everything that is not in the graphs is here, in NumPy: the pad point, the hints, the choice among
the masks, which slices are remembered. A back end brings a `GraphRunner` only.

Letters as in `promptable` and in `contracts.sam2_graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sssflow.contracts.base import Sha256
from sssflow.contracts.sam2_graphs import IMAGE_MEAN, IMAGE_STD, PAD_LABEL, GraphName, Sam2Rules
from sssflow.errors import InternalError
from sssflow.sam.build import MASK_STRIDE
from sssflow.sam.geometry import Window
from sssflow.sam.hints import carried_hint
from sssflow.sam.memory_plan import attended
from sssflow.sam.prompt_arrays import group_by_points, sparse_and_dense
from sssflow.sam.promptable import Features, Floats, Prompt, SliceMask

Arrays = dict[str, NDArray[Any]]

PROMPT_CHUNK = 16
"""Most prompts of one decoder call: the time per prompt no longer falls beyond."""


class GraphRunner(Protocol):
    """Runs a graph of the contract."""

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name.

        Raises:
            UnavailableError: The graph cannot be run now.
        """


@dataclass(frozen=True)
class GraphFeatures:
    """Encoder outputs of slices in memory, and the slices on the mask grid."""

    maps: Arrays
    window: Window
    grey_byx: Floats

    def __len__(self) -> int:
        return len(self.grey_byx)

    def of_slice(self, index: int) -> Arrays:
        """The encoder outputs of one slice, each with a leading axis of one."""
        return {name: values[index : index + 1] for name, values in self.maps.items()}


@dataclass(frozen=True)
class GraphMemory:
    """Memory and pointer of one object by slice, and mask logits (1, 1, y, x) for hints."""

    conditioning: Mapping[int, Arrays]
    logits: Mapping[int, Floats]
    tracked: Mapping[int, Arrays] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """The mask that was kept for each object of a decoder call."""

    logits_nyx: Floats
    iou_n: Floats
    score_n: Floats
    token_nc: Floats

    def answer(self, position: int) -> SliceMask:
        """The answer for one object."""
        return SliceMask(
            logits_yx=self.logits_nyx[position],
            predicted_iou=float(np.clip(self.iou_n[position], 0, 1)),
            object_score=float(self.score_n[position]),
        )


class GraphPromptable:
    """`PromptableVideo` on a runner of the four graphs."""

    def __init__(
        self,
        runner: GraphRunner,
        rules: Sam2Rules,
        *,
        backend: str,
        model_digest: Sha256,
        input_size: int,
        encode_batch: int = 1,
    ) -> None:
        """Wrap a runner.

        Args:
            runner: Runs the graphs of one input size.
            rules: Of the same bundle.
            backend: `onnx` or `triton`.
            model_digest: Names the bundle.
            input_size: Side of the square input in pixels.
            encode_batch: Slices encoded at once; on a CPU one is as fast as many.
        """
        self._runner = runner
        self._rules = rules
        self._encode_batch = encode_batch
        self.backend = backend
        self.model_digest = model_digest
        self.input_size = input_size

    def encode(self, slices_bhw: Floats, window: Window) -> GraphFeatures:
        """See `Promptable.encode`."""
        slices = torch.from_numpy(np.ascontiguousarray(slices_bhw, np.float32))[:, None]
        parts = [
            self._runner.run("encoder", {"image": model_image(window.crop(part, self.input_size))})
            for part in torch.split(slices, self._encode_batch)
        ]
        maps = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        grey = window.crop(slices, self.input_size // MASK_STRIDE)[:, 0].numpy()
        return GraphFeatures(maps, window, grey)

    def segment(
        self, features: Features, slice_index: int, prompts: Sequence[Prompt]
    ) -> list[SliceMask]:
        """See `Promptable.segment`; at most `PROMPT_CHUNK` prompts run at once."""
        own = _own(features)
        masks: dict[int, SliceMask] = {}
        for group in group_by_points(prompts):
            for start in range(0, len(group), PROMPT_CHUNK):
                members = group[start : start + PROMPT_CHUNK]
                kept = self._ask(own, slice_index, [prompts[i] for i in members])
                masks |= {index: kept.answer(at) for at, index in enumerate(members)}
        return [masks[i] for i in range(len(prompts))]

    def begin(
        self, features: Features, prompts: Mapping[int, Prompt]
    ) -> tuple[GraphMemory, dict[int, SliceMask]]:
        """See `PromptableVideo.begin`."""
        own = _own(features)
        entries, masks, logits = {}, {}, {}
        for index in sorted(prompts):
            kept = self._ask(own, index, [prompts[index]])
            entries[index] = self._remember(own, index, kept)
            masks[index] = kept.answer(0)
            logits[index] = kept.logits_nyx[:, None]
        return GraphMemory(entries, logits), masks

    def track(
        self, features: Features, memory: Any, slice_index: int, *, reverse: bool
    ) -> tuple[GraphMemory, SliceMask]:
        """See `PromptableVideo.track`."""
        own = _own(features)
        here = own.of_slice(slice_index)
        here["embed"] = self._recall(own, memory, slice_index, reverse=reverse)
        # What SAM-2 feeds its decoder on a slice that it only tracks: a pad point, padded again.
        points = np.zeros((1, 1, 2), np.float32), np.full((1, 1), PAD_LABEL, np.int32)
        dense = None
        if self._rules.hints:
            last = slice_index + (1 if reverse else -1)
            before, now = own.grey_byx[[last]], own.grey_byx[[slice_index]]
            dense = carried_hint(memory.logits[last], before, now)[:, 0]
        inputs = decoder_inputs(here, points, dense)
        kept = keep(self._rules, self._runner.run("decoder", inputs), point_count=0)
        grown = replace(
            memory,
            tracked={**memory.tracked, slice_index: self._remember(own, slice_index, kept)},
            logits={**memory.logits, slice_index: kept.logits_nyx[:, None]},
        )
        return grown, kept.answer(0)

    def _ask(self, features: GraphFeatures, slice_index: int, group: Sequence[Prompt]) -> Kept:
        """One decoder call for prompts of equal point count on one slice."""
        points, dense = sparse_and_dense(
            group,
            features.window,
            self.input_size,
            hints=self._rules.hints,
            grey_yx=features.grey_byx[slice_index],
        )
        inputs = decoder_inputs(features.of_slice(slice_index), points, dense)
        outputs = self._runner.run("decoder", inputs)
        return keep(self._rules, outputs, point_count=group[0].point_count)

    def _remember(self, features: GraphFeatures, slice_index: int, kept: Kept) -> Arrays:
        return self._runner.run(
            "memory_encoder",
            {
                "embed": features.of_slice(slice_index)["embed"],
                "mask": kept.logits_nyx[:, None],
                "object_score": kept.score_n[:, None],
                "mask_token": kept.token_nc,
            },
        )

    def _recall(
        self, features: GraphFeatures, memory: GraphMemory, slice_index: int, *, reverse: bool
    ) -> Floats:
        plan = attended(
            self._rules,
            slice_index,
            len(features),
            conditioning=tuple(memory.conditioning),
            tracked=frozenset(memory.tracked),
            reverse=reverse,
        )
        entries = {**memory.tracked, **memory.conditioning}
        outputs = self._runner.run(
            "memory_attention",
            {
                "embed": features.of_slice(slice_index)["embed"],
                "memory": np.stack([entries[i]["memory"] for i in plan.slices], axis=1),
                "memory_slot": np.asarray(plan.slots, np.int64),
                "pointers": np.stack([entries[i]["pointer"] for i in plan.pointers], axis=1),
                "pointer_time": np.asarray(plan.pointer_times, np.float32),
            },
        )
        conditioned: Floats = outputs["embed_with_memory"]
        return conditioned


def model_image(image_b1yx: torch.Tensor) -> Floats:
    """The encoder's input (b, 3, S, S) from grey slices (b, 1, S, S) in [0, 1]."""
    mean = np.asarray(IMAGE_MEAN, np.float32)[:, None, None]
    std = np.asarray(IMAGE_STD, np.float32)[:, None, None]
    image: Floats = (image_b1yx.numpy() - mean) / std
    return image


def decoder_inputs(
    features: Arrays, points: tuple[Floats, NDArray[np.int32]] | None, dense_nyx: Floats | None
) -> Arrays:
    """Inputs of the decoder graph for n objects.

    Args:
        features: Encoder outputs of one slice, leading axis of one.
        points: Coordinates (n, p, 2) and labels (n, p), without the pad point, which is added
            here; None: no points, and then no pad point either.
        dense_nyx: Mask input; None: no mask. One of the two is given.
    """
    given = points[0] if points is not None else dense_nyx
    if given is None:
        raise InternalError("A decoder call needs points or masks.")
    count = len(given)
    coords = np.zeros((count, 0, 2), np.float32)
    labels = np.zeros((count, 0), np.int32)
    if points is not None:
        coords = np.pad(points[0], ((0, 0), (0, 1), (0, 0)))
        labels = np.pad(points[1], ((0, 0), (0, 1)), constant_values=PAD_LABEL)
    cells = features["feat_s0"].shape[-1]
    mask = np.zeros((count, cells, cells), np.float32) if dense_nyx is None else dense_nyx
    return {
        **features,
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": mask[:, None],
        "has_mask": np.full(count, dense_nyx is not None, np.float32),
    }


def keep(rules: Sam2Rules, outputs: Mapping[str, NDArray[Any]], *, point_count: int) -> Kept:
    """The mask that SAM-2 keeps: the best of three where the prompt is ambiguous, else the first.

    Args:
        rules: What counts as ambiguous.
        outputs: Of the decoder graph.
        point_count: Points of each object, a box as two, the pad point not counted.
    """
    rows = np.arange(len(outputs["iou"]))
    best = np.zeros(len(rows), np.int64)
    if rules.multimask_min_points <= point_count <= rules.multimask_max_points:
        best = outputs["iou"][:, 1:].argmax(axis=1) + 1
    return Kept(
        logits_nyx=outputs["masks"][rows, best],
        iou_n=outputs["iou"][rows, best],
        score_n=outputs["object_score"][:, 0],
        token_nc=outputs["mask_tokens"][rows, best],
    )


def _own(features: Features) -> GraphFeatures:
    if not isinstance(features, GraphFeatures):
        raise InternalError(
            "Features of another backend.", expected="GraphFeatures", found=type(features).__name__
        )
    return features
