"""The gates of SAM-2's graphs in other precisions than fp32: are the masks still as good?

Clips with known masks go through PyTorch in fp32 and through the graphs: a box prompts each object
on the first slice, memory carries it over two more. Compared are the Dice with the known masks and
the masks with each other.

Letters: t slices, y rows, x columns, o objects.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from scipy import ndimage

from sssflow.contracts.sam2_graphs import Sam2Gate, Sam2Rules
from sssflow.export.config import Sam2ExportConfig
from sssflow.export.sam2_gates import Findings, contract_gate
from sssflow.sam.build import MASK_STRIDE
from sssflow.sam.geometry import full_window
from sssflow.sam.graph_promptable import GraphPromptable
from sssflow.sam.guide import prompt_from_mask
from sssflow.sam.onnx_backend import OnnxRunner
from sssflow.sam.pretrain_data import SceneSource
from sssflow.sam.promptable import PromptableVideo
from sssflow.sam.scenes import Scene
from sssflow.sam.torch_backend import TorchPromptable

Masks = NDArray[np.bool_]

_LENGTH = 3
_NO_DIGEST = "0" * 64


def close_gates(
    runner: OnnxRunner,
    model: SAM2Base,
    rules: Sam2Rules,
    scenes: SceneSource,
    config: Sam2ExportConfig,
) -> tuple[Sam2Gate, ...]:
    """Loss of mean Dice, and share of mask pixels that change sides.

    Raises:
        InternalError: A figure is over its limit, or a graph holds to another contract.
    """
    contract_gate(runner, model)
    size_px = int(model.image_size)
    exact = TorchPromptable(model, model_digest=_NO_DIGEST, hints=rules.hints)
    close = GraphPromptable(
        runner, rules, backend="onnx", model_digest=_NO_DIGEST, input_size=size_px
    )
    rng = np.random.default_rng(config.seed)
    losses, flips = [], []
    for _ in range(config.gate_clips):
        scene = scenes.draw(rng, size=size_px, length=_LENGTH)
        wanted, found = _segment(exact, scene), _segment(close, scene)
        truth = _at_mask_size(scene.masks_otyx)
        losses.append(_dice(wanted, truth) - _dice(found, truth))
        flips.append(float(np.mean(wanted != found)))
    findings = Findings(size_px)
    findings.add("loss of Dice", float(np.mean(losses)), config.dice_tolerance)
    findings.add("flipped pixels", float(np.mean(flips)), config.flip_tolerance)
    return findings.require()


def _segment(model: PromptableVideo, scene: Scene) -> Masks:
    """Masks (o, t, y, x) of all objects of a clip."""
    _, rows, cols = scene.image_tyx.shape
    features = model.encode(scene.image_tyx, full_window((rows, cols)))
    found = []
    for mask_tyx in scene.masks_otyx:
        prompt = prompt_from_mask(mask_tyx[0])
        if prompt is None:
            raise ValueError("an object of a scene is empty on its first slice")
        memory, first = model.begin(features, {0: prompt})
        slices = [first[0].logits_yx]
        for index in range(1, len(features)):
            memory, answer = model.track(features, memory, index, reverse=False)
            slices.append(answer.logits_yx)
        found.append(np.stack(slices) > 0)
    return np.stack(found)


def _at_mask_size(masks_otyx: Masks) -> Masks:
    """The masks at a quarter of the sides: where a cell is covered by half or more."""
    kernel = (1, 1, MASK_STRIDE, MASK_STRIDE)
    share = ndimage.uniform_filter(masks_otyx.astype(np.float32), kernel, origin=(0, 0, -1, -1))
    covered: Masks = share[..., ::MASK_STRIDE, ::MASK_STRIDE] >= 0.5
    return covered


def _dice(found: Masks, truth: Masks) -> float:
    both, either = int((found & truth).sum()), int(found.sum()) + int(truth.sum())
    return 2 * both / max(either, 1)
