"""The gates of SAM-2's graphs in other precisions than fp32: are the masks still as good?

Clips with known masks go through PyTorch in fp32 and through the graphs: a box prompts each object
on the first slice, memory carries it over two more. Compared are the Dice with the known masks and
the masks with each other; and, for the box and for one click alone, all four masks of the decoder
and their predicted IoU, by which one is chosen after a click.

Letters: t slices, y rows, x columns, o objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from sam2.modeling.sam2_base import SAM2Base
from scipy import ndimage

from sssflow.contracts.sam2_graphs import GraphName, Sam2Gate, Sam2Rules
from sssflow.export.config import Sam2ExportConfig
from sssflow.export.sam2_gates import Findings, contract_gate
from sssflow.export.sam2_modules import graph_module
from sssflow.export.sam2_onnx import LARGEST, tensors_of, with_largest
from sssflow.sam.build import MASK_STRIDE
from sssflow.sam.geometry import full_window
from sssflow.sam.graph_promptable import Arrays, GraphPromptable, GraphRunner, decoder_inputs
from sssflow.sam.guide import prompt_from_mask
from sssflow.sam.onnx_backend import OnnxRunner, require_runtime
from sssflow.sam.pretrain_data import SceneSource
from sssflow.sam.prompt_arrays import sparse_and_dense
from sssflow.sam.promptable import Prompt, PromptableVideo
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
    """Loss of mean Dice, share of mask pixels that change sides, and error of the predicted IoU.

    Raises:
        InternalError: A figure is over its limit, or a graph holds to another contract.
    """
    contract_gate(runner, model)
    size_px = int(model.image_size)
    exact = TorchPromptable(model, model_digest=_NO_DIGEST, hints=rules.hints)
    close = GraphPromptable(
        runner, rules, backend="onnx", model_digest=_NO_DIGEST, input_size=size_px
    )
    modules = _Modules(model)
    rng = np.random.default_rng(config.seed)
    losses, flips, decoded_flips, iou_errors = [], [], [], []
    for _ in range(config.gate_clips):
        scene = scenes.draw(rng, size=size_px, length=_LENGTH)
        wanted, found = _segment(exact, scene), _segment(close, scene)
        truth = _at_mask_size(scene.masks_otyx)
        losses.append(_dice(wanted, truth) - _dice(found, truth))
        flips.append(float(np.mean(wanted != found)))
        for true, answer in zip(
            _decode(modules, rules, size_px, scene),
            _decode(runner, rules, size_px, scene),
            strict=True,
        ):
            decoded_flips.append(float(np.mean((true["masks"] > 0) != (answer["masks"] > 0))))
            iou_errors.append(float(np.mean(np.abs(true["iou"] - answer["iou"]))))
    findings = Findings(size_px)
    findings.add("loss of Dice", float(np.mean(losses)), config.dice_tolerance)
    findings.add("flipped pixels", float(np.mean(flips)), config.flip_tolerance)
    share = float(np.mean(decoded_flips))
    findings.add("flipped pixels of all four masks", share, config.flip_tolerance)
    findings.add("error of the predicted IoU", float(np.mean(iou_errors)), config.iou_tolerance)
    return findings.require()


class _Modules:
    """`GraphRunner` on the modules that the graphs were made from."""

    def __init__(self, model: SAM2Base) -> None:
        self._model = model

    @torch.no_grad()
    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `GraphRunner.run`."""
        given, gives = tensors_of(graph, self._model)
        values = graph_module(graph, self._model)(
            *(torch.from_numpy(inputs[t.name]) for t in given)
        )
        return {t.name: value.numpy() for t, value in zip(gives, values, strict=True)}


def _decode(runner: GraphRunner, rules: Sam2Rules, size_px: int, scene: Scene) -> list[Arrays]:
    """All that the decoder gives for the box and for the click of each object's first slice."""
    model = GraphPromptable(
        runner, rules, backend="onnx", model_digest=_NO_DIGEST, input_size=size_px
    )
    _, rows, cols = scene.image_tyx.shape
    features = model.encode(scene.image_tyx[:1], full_window((rows, cols)))
    outputs = []
    for mask_tyx in scene.masks_otyx:
        both = _prompt(mask_tyx[0])
        for prompt in (
            replace(both, points_xy_px=(), point_labels=()),
            replace(both, box_xyxy_px=None),
        ):
            points, dense = sparse_and_dense(
                [prompt],
                features.window,
                size_px,
                hints=rules.hints,
                grey_yx=features.grey_byx[0],
            )
            outputs.append(
                runner.run("decoder", decoder_inputs(features.of_slice(0), points, dense))
            )
    return outputs


def _prompt(mask_yx: NDArray[np.bool_]) -> Prompt:
    prompt = prompt_from_mask(mask_yx)
    if prompt is None:
        raise ValueError("an object of a scene is empty on its first slice")
    return prompt


class _Watched:
    """`GraphRunner` on graphs of `with_largest`; keeps the largest magnitude that it met."""

    def __init__(self, graphs: Mapping[GraphName, ModelProto]) -> None:
        runtime = require_runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self._sessions = {
            name: runtime.InferenceSession(
                with_largest(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            for name, graph in graphs.items()
        }
        self.largest = 0.0

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `GraphRunner.run`."""
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        met = [float(found.pop(name)) for name in names if name.startswith(LARGEST)]
        self.largest = float(np.max([self.largest, *met]))
        return found


def largest_value(
    graphs: Mapping[GraphName, ModelProto],
    rules: Sam2Rules,
    scenes: SceneSource,
    config: Sam2ExportConfig,
    size_px: int,
) -> float:
    """Largest magnitude of any value inside fp32 graphs on the first clip of the gates."""
    watched = _Watched(graphs)
    model = GraphPromptable(
        watched, rules, backend="onnx", model_digest=_NO_DIGEST, input_size=size_px
    )
    rng = np.random.default_rng(config.seed)
    _segment(model, scenes.draw(rng, size=size_px, length=_LENGTH))
    return watched.largest


def _segment(model: PromptableVideo, scene: Scene) -> Masks:
    """Masks (o, t, y, x) of all objects of a clip."""
    _, rows, cols = scene.image_tyx.shape
    features = model.encode(scene.image_tyx, full_window((rows, cols)))
    found = []
    for mask_tyx in scene.masks_otyx:
        memory, first = model.begin(features, {0: _prompt(mask_tyx[0])})
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
