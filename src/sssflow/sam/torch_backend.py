"""The prompted SAM-2 in PyTorch: any official size or nano, CPU or GPU.

Letters as in `promptable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from sssflow.contracts.base import Sha256
from sssflow.errors import InternalError
from sssflow.networks.device import choose_device
from sssflow.sam.build import MASK_STRIDE, build_sam2
from sssflow.sam.config import SamConfig
from sssflow.sam.geometry import Window
from sssflow.sam.heads import (
    Choice,
    FeatureMaps,
    HeadOutput,
    choose,
    decode,
    image_features,
    no_points,
    recall,
    remember,
    without_memory,
)
from sssflow.sam.hints import carried_hint
from sssflow.sam.prompt_arrays import group_by_points, sparse_and_dense
from sssflow.sam.promptable import Features, Prompt, SliceMask
from sssflow.sam.weights_io import load_weights, weights_path
from sssflow.storage.digest import sha256_file

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TorchFeatures:
    """Feature maps of slices on the model's device, and the slices on the mask grid.

    Attributes:
        maps: Features.
        window: What was encoded.
        grey_byx: The window of each slice at a quarter of the input size, for hints.
    """

    maps: FeatureMaps
    window: Window
    grey_byx: Floats

    def __len__(self) -> int:
        return len(self.maps)


@dataclass(frozen=True)
class TorchMemory:
    """Memory entries and mask logits (1, 1, y, x) of one object by slice."""

    conditioning: Mapping[int, dict[str, Any]]
    logits: Mapping[int, Tensor]
    tracked: Mapping[int, dict[str, Any]] = field(default_factory=dict)


class TorchPromptable:
    """`PromptableVideo` on a SAM-2 model that is in evaluation mode on its device."""

    backend = "torch"

    def __init__(
        self,
        model: SAM2Base,
        *,
        model_digest: Sha256,
        hints: bool = False,
        encode_batch: int = 8,
    ) -> None:
        """Wrap a model.

        Args:
            model: Weights loaded, on its device.
            model_digest: Names the weights.
            hints: Draw prompts into the mask input too, as nano was trained (see `hints`).
            encode_batch: Slices encoded at once.
        """
        self._model = model.eval()
        self._hints = hints
        self._encode_batch = encode_batch
        self.model_digest = model_digest

    @property
    def input_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self._model.image_size)

    @torch.inference_mode()
    def encode(self, slices_bhw: Floats, window: Window) -> TorchFeatures:
        """See `Promptable.encode`."""
        slices = torch.from_numpy(np.ascontiguousarray(slices_bhw, np.float32))[:, None]
        parts = [
            image_features(self._model, window.crop(part.to(self._device), self.input_size))
            for part in torch.split(slices, self._encode_batch)
        ]
        names = ("fine_bcyx", "middle_bcyx", "coarse_bcyx", "position_bcyx")
        maps = FeatureMaps(*(torch.cat([getattr(p, name) for p in parts]) for name in names))
        grey = window.crop(slices, self.input_size // MASK_STRIDE)[:, 0].numpy()
        return TorchFeatures(maps, window, grey)

    @torch.inference_mode()
    def segment(
        self, features: Features, slice_index: int, prompts: Sequence[Prompt]
    ) -> list[SliceMask]:
        """See `Promptable.segment`."""
        own = _own(features)
        masks: dict[int, SliceMask] = {}
        for members in group_by_points(prompts):
            group = [prompts[i] for i in members]
            choice, out, _ = self._ask(own, slice_index, group)
            for position, index in enumerate(members):
                masks[index] = _answer(choice, out, position)
        return [masks[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def begin(
        self, features: Features, prompts: Mapping[int, Prompt]
    ) -> tuple[TorchMemory, dict[int, SliceMask]]:
        """See `PromptableVideo.begin`."""
        own = _own(features)
        entries, masks, logits = {}, {}, {}
        for index in sorted(prompts):
            choice, out, here = self._ask(own, index, [prompts[index]])
            entries[index] = remember(
                self._model, here, choice, out.score_n1, from_points=prompts[index].point_count > 0
            )
            masks[index] = _answer(choice, out, 0)
            logits[index] = choice.logits_n1yx
        return TorchMemory(entries, logits), masks

    @torch.inference_mode()
    def track(
        self, features: Features, memory: Any, slice_index: int, *, reverse: bool
    ) -> tuple[TorchMemory, SliceMask]:
        """See `PromptableVideo.track`."""
        own = _own(features)
        here = own.maps.take(torch.tensor([slice_index], device=self._device))
        conditioned = recall(
            self._model,
            here,
            slice_index,
            len(own),
            conditioning=memory.conditioning,
            tracked=memory.tracked,
            reverse=reverse,
        )
        hint = None
        if self._hints:
            last = slice_index + (1 if reverse else -1)
            drawn = carried_hint(
                memory.logits[last].float().cpu().numpy(),
                own.grey_byx[last : last + 1],
                own.grey_byx[slice_index : slice_index + 1],
            )
            hint = self._tensor(drawn)
        out = decode(self._model, conditioned, here, no_points(1, self._device), hint)
        choice = choose(self._model, out, point_count=0)
        entry = remember(self._model, here, choice, out.score_n1, from_points=False)
        grown = replace(
            memory,
            tracked={**memory.tracked, slice_index: entry},
            logits={**memory.logits, slice_index: choice.logits_n1yx},
        )
        return grown, _answer(choice, out, 0)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device

    def _ask(
        self, features: TorchFeatures, slice_index: int, group: Sequence[Prompt]
    ) -> tuple[Choice, HeadOutput, FeatureMaps]:
        """One decoder pass for prompts of equal point count on one slice."""
        rows = torch.full((len(group),), slice_index, device=self._device)
        here = features.maps.take(rows)
        points, dense = sparse_and_dense(
            group,
            features.window,
            self.input_size,
            hints=self._hints,
            grey_yx=features.grey_byx[slice_index],
        )
        conditioned = without_memory(self._model, here)
        out = decode(
            self._model,
            conditioned,
            here,
            None if points is None else (self._tensor(points[0]), self._tensor(points[1])),
            None if dense is None else self._tensor(dense[:, None]),
        )
        return choose(self._model, out, point_count=group[0].point_count), out, here

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def load_torch_promptable(config: SamConfig) -> TorchPromptable:
    """Build and load what the configuration names.

    Raises:
        DataError: The weights are missing or do not fit.
        UsageError: An official size without weights, or a device that is not here.
    """
    device = choose_device(config.device, where="sam.device")
    path = weights_path(config.size, config.weights)
    model = build_sam2(config.size, version=config.version, input_size=config.input_size)
    load_weights(model, path)
    return TorchPromptable(
        model.to(device),
        model_digest=sha256_file(path),
        hints=config.size == "nano",
        encode_batch=config.encode_batch,
    )


def _answer(choice: Choice, out: HeadOutput, position: int) -> SliceMask:
    return SliceMask(
        logits_yx=choice.logits_n1yx[position, 0].float().cpu().numpy(),
        predicted_iou=float(choice.iou_n1[position, 0].clamp(0, 1)),
        object_score=float(out.score_n1[position, 0]),
    )


def _own(features: Features) -> TorchFeatures:
    if not isinstance(features, TorchFeatures):
        raise InternalError(
            "Features of another backend.", expected="TorchFeatures", found=type(features).__name__
        )
    return features
