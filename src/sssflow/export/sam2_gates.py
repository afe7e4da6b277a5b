"""The gates of SAM-2's graphs: what they must equal before anything is published.

The graphs run in ONNX Runtime and are compared with PyTorch and, prompt by prompt, with the
package's own `SAM2ImagePredictor`.

Letters as in `contracts.sam2_graphs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor

from sssflow.contracts.sam2_graphs import GRAPHS, PAD_LABEL, Sam2Gate
from sssflow.errors import InternalError
from sssflow.export.sam2_modules import graph_module, rules_of
from sssflow.export.sam2_onnx import tensors_of
from sssflow.sam.build import STRIDE, feature_sizes
from sssflow.sam.graph_promptable import Arrays, decoder_inputs
from sssflow.sam.heads import FeatureMaps, recall
from sssflow.sam.memory_plan import attended
from sssflow.sam.onnx_backend import OnnxRunner

FEATURE_LIMIT: Final = 1e-4
LOGIT_LIMIT: Final = 1e-3
FLIP_LIMIT: Final = 1e-4
IOU_LIMIT: Final = 1e-4
PROMPT_GRID: Final = ((2, 3), (1, 3), (1, 1), (1, 0), (8, 3), (5, 12))
"""Prompts L and points N of each."""

_DTYPES: Final = {"float32": "tensor(float)", "int32": "tensor(int32)", "int64": "tensor(int64)"}
_NOT_FINITE = 1e38


@dataclass
class Findings:
    """The worst figure of each gate."""

    size_px: int
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, gate: str, found: float, limit: float) -> None:
        """Keep a figure if it is the worst; one that is not a number is the worst of all."""
        figure = found if math.isfinite(found) else _NOT_FINITE
        self.worst[gate] = (max(figure, self.worst.get(gate, (0.0, limit))[0]), limit)

    def difference(self, gate: str, found: NDArray[Any], true: NDArray[Any], limit: float) -> None:
        """The largest difference; other shapes are as bad as no number."""
        same = found.shape == true.shape
        self.add(gate, float(np.abs(found - true).max(initial=0)) if same else math.inf, limit)

    def masks(self, gate: str, found: NDArray[Any], true: NDArray[Any]) -> None:
        """Logits and the share of pixels on another side of 0."""
        self.difference(f"{gate}: logits", found, true, LOGIT_LIMIT)
        flips = np.mean((found > 0) != (true > 0)) if found.shape == true.shape else math.inf
        self.add(f"{gate}: flipped pixels", float(flips), FLIP_LIMIT)

    def require(self) -> tuple[Sam2Gate, ...]:
        """All figures.

        Raises:
            InternalError: One is over its limit; the message names every one that is.
        """
        gates = tuple(
            Sam2Gate(size_px=self.size_px, gate=name, found=found, limit=limit)
            for name, (found, limit) in self.worst.items()
        )
        refuse_failures(gates)
        return gates


def refuse_failures(gates: tuple[Sam2Gate, ...]) -> None:
    """Raise for figures over their limit.

    Raises:
        InternalError: Names every one.
    """
    bad = [gate for gate in gates if not gate.found <= gate.limit]
    if bad:
        raise InternalError(
            "The exported graphs do not compute what SAM-2 computes; nothing was published.",
            where=f"input size {bad[0].size_px}",
            expected="; ".join(f"{gate.gate} <= {gate.limit:g}" for gate in bad),
            found="; ".join(f"{gate.gate} {gate.found:g}" for gate in bad),
            action="Try another precision, or report it with your versions.",
        )


def contract_gate(runner: OnnxRunner, model: SAM2Base) -> None:
    """Names, types and shapes of every input and output.

    Raises:
        InternalError: A graph holds to another contract.
    """
    for name in GRAPHS:
        session = runner.session(name)
        inputs, outputs = tensors_of(name, model)
        for wanted, found in ((inputs, session.get_inputs()), (outputs, session.get_outputs())):
            expected = [(t.name, _DTYPES[t.dtype], len(t.shape)) for t in wanted]
            got = [(t.name, t.type, len(t.shape)) for t in found]
            if got != expected:
                raise InternalError(
                    "An exported graph has other tensors than its contract.",
                    where=name,
                    expected=expected,
                    found=got,
                )


@torch.no_grad()
def exact_gates(runner: OnnxRunner, model: SAM2Base, *, seed: int = 0) -> tuple[Sam2Gate, ...]:
    """Every gate of an fp32 export at one input size.

    Raises:
        InternalError: A figure is over its limit, or a graph holds to another contract.
    """
    contract_gate(runner, model)
    findings = Findings(int(model.image_size))
    rng = np.random.default_rng(seed)
    features = _encoder_gates(findings, runner, model, rng)
    _decoder_gates(findings, runner, model, rng, features)
    _memory_gates(findings, runner, model, rng, features)
    _predictor_gates(findings, runner, model, rng)
    return findings.require()


def _image(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Blocks of grey with noise: what a network reacts to more than to noise alone."""
    coarse = rng.uniform(-1.5, 1.5, (*shape[:-2], 8, 8))
    rows = np.arange(shape[-2]) * 8 // shape[-2]
    cols = np.arange(shape[-1]) * 8 // shape[-1]
    image = coarse[..., rows[:, None], cols[None]] + rng.normal(0, 0.2, shape)
    return np.asarray(image, np.float32)


def _encoder_gates(
    findings: Findings, runner: OnnxRunner, model: SAM2Base, rng: np.random.Generator
) -> Arrays:
    """Batches of one and two; returns PyTorch's features of the first image."""
    side = int(model.image_size)
    module = graph_module("encoder", model)
    image = _image(rng, 2, 3, side, side)
    names = [tensor.name for tensor in tensors_of("encoder", model)[1]]
    first: Arrays = {}
    for batch in (2, 1):
        expected = [value.numpy() for value in module(torch.from_numpy(image[:batch]))]
        found = runner.run("encoder", {"image": image[:batch]})
        for name, value in zip(names, expected, strict=True):
            findings.difference(f"encoder {name}", found[name], value, FEATURE_LIMIT)
        first = dict(zip(names, expected, strict=True))
    return first


def _decoder_gates(
    findings: Findings,
    runner: OnnxRunner,
    model: SAM2Base,
    rng: np.random.Generator,
    features: Arrays,
) -> None:
    side = int(model.image_size)
    module = graph_module("decoder", model)
    for prompts, points in PROMPT_GRID:
        for has_mask in (0, 1):
            inputs = {
                **features,
                "point_coords": rng.uniform(0, side, (prompts, points, 2)).astype(np.float32),
                "point_labels": rng.integers(PAD_LABEL, 4, (prompts, points)).astype(np.int32),
                "mask_input": rng.normal(0, 4, (prompts, 1, side // 4, side // 4)).astype("f4"),
                "has_mask": np.full(prompts, has_mask, np.float32),
            }
            found = runner.run("decoder", inputs)
            given = [torch.from_numpy(inputs[t.name]) for t in tensors_of("decoder", model)[0]]
            masks, iou, score, tokens = (value.numpy() for value in module(*given))
            findings.masks("decoder", found["masks"], masks)
            findings.difference("decoder: IoU", found["iou"], iou, IOU_LIMIT)
            findings.difference("decoder: score", found["object_score"], score, LOGIT_LIMIT)
            findings.difference("decoder: tokens", found["mask_tokens"], tokens, LOGIT_LIMIT)


def _memory_gates(
    findings: Findings,
    runner: OnnxRunner,
    model: SAM2Base,
    rng: np.random.Generator,
    features: Arrays,
) -> None:
    """Both memory graphs for one and two objects; attention against the package's complex one."""
    side = int(model.image_size)
    module = graph_module("memory_encoder", model)
    for batch in (1, 2):
        inputs: Arrays = {
            "embed": np.repeat(features["embed"], batch, axis=0),
            "mask": rng.normal(0, 4, (batch, 1, side // 4, side // 4)).astype(np.float32),
            "object_score": np.asarray([[2.0], [-2.0]][:batch], np.float32),
            "mask_token": rng.normal(0, 1, (batch, int(model.hidden_dim))).astype(np.float32),
        }
        found = runner.run("memory_encoder", inputs)
        memory, pointer = module(*(torch.from_numpy(value) for value in inputs.values()))
        findings.difference("memory encoder", found["memory"], memory.numpy(), FEATURE_LIMIT)
        findings.difference("object pointer", found["pointer"], pointer.numpy(), FEATURE_LIMIT)
        for frame, tracked in ((1, 0), (3, 2), (20, 19)):
            expected, given = _remembered(model, rng, inputs["embed"], frame, tracked)
            answer = runner.run("memory_attention", given)["embed_with_memory"]
            findings.difference("memory attention", answer, expected, FEATURE_LIMIT)


def _remembered(
    model: SAM2Base, rng: np.random.Generator, embed: NDArray[Any], frame: int, tracked: int
) -> tuple[NDArray[Any], Arrays]:
    """What the package gives for slice `frame` after a prompted one, and the graph's inputs."""
    batch, tokens = len(embed), int(model.image_size) // STRIDE
    entries = []
    for _ in range(tracked + 1):
        memory = rng.normal(0, 1, (batch, int(model.mem_dim), tokens, tokens)).astype(np.float32)
        pointer = rng.normal(0, 1, (batch, int(model.hidden_dim))).astype(np.float32)
        entries.append({"memory": memory, "pointer": pointer})
    place = model.memory_encoder.position_encoding(torch.zeros(batch, 1, tokens, tokens))
    kept = {
        index: {
            "maskmem_features": torch.from_numpy(entry["memory"]),
            "maskmem_pos_enc": [place],
            "obj_ptr": torch.from_numpy(entry["pointer"]),
        }
        for index, entry in enumerate(entries)
    }
    out = recall(
        model,
        _maps(model, embed),
        frame,
        frame + 1,
        conditioning={0: kept.pop(0)},
        tracked=kept,
    )
    plan = attended(
        rules_of(model, hints=False),
        frame,
        frame + 1,
        conditioning=(0,),
        tracked=set(kept),
        reverse=False,
    )
    given: Arrays = {
        "embed": embed,
        "memory": np.stack([entries[i]["memory"] for i in plan.slices], axis=1),
        "memory_slot": np.asarray(plan.slots, np.int64),
        "pointers": np.stack([entries[i]["pointer"] for i in plan.pointers], axis=1),
        "pointer_time": np.asarray(plan.pointer_times, np.float32),
    }
    return out.numpy(), given


def _maps(model: SAM2Base, embed: NDArray[Any]) -> FeatureMaps:
    coarse = torch.from_numpy(embed) - model.no_mem_embed.view(1, -1, 1, 1)
    tokens = int(model.image_size) // STRIDE
    code = model.image_encoder.neck.position_encoding(torch.zeros(len(embed), 1, tokens, tokens))
    return FeatureMaps(coarse, coarse, coarse, code)


def _predictor_gates(
    findings: Findings, runner: OnnxRunner, model: SAM2Base, rng: np.random.Generator
) -> None:
    """The chain of both graphs against the package's predictor, for every kind of prompt."""
    side, rows, cols = int(model.image_size), 96, 128
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = feature_sizes(side)
    image = np.clip(_image(rng, rows, cols) * 60 + 128, 0, 255).astype(np.uint8)
    image = np.repeat(image[..., None], 3, axis=2)
    predictor.set_image(image)
    features = runner.run("encoder", {"image": predictor._transforms(image)[None].numpy()})
    box = np.asarray([20, 15, 90, 70], np.float32)
    points = np.asarray([[50, 40], [10, 80]], np.float32)
    labels = np.asarray([1, 0], np.int32)
    mask = rng.normal(0, 4, (1, side // 4, side // 4)).astype(np.float32)
    kinds: Mapping[str, dict[str, Any]] = {
        "box": {"box": box},
        "points": {"point_coords": points, "point_labels": labels},
        "box and points": {"box": box, "point_coords": points, "point_labels": labels},
        "mask": {"mask_input": mask},
    }
    scale = np.asarray([side / cols, side / rows], np.float32)
    for kind, prompt in kinds.items():
        parts = [prompt[key].reshape(-1, 2) for key in ("box", "point_coords") if key in prompt]
        given = None
        if parts:
            codes = [2, 3] * ("box" in prompt) + [1, 0] * ("point_coords" in prompt)
            at = (np.concatenate(parts) * scale)[None].astype(np.float32)
            given = (at, np.asarray([codes], np.int32))
        found = runner.run("decoder", decoder_inputs(features, given, prompt.get("mask_input")))
        for several, chosen in ((True, slice(1, 4)), (False, slice(0, 1))):
            _, iou, low = predictor.predict(**prompt, multimask_output=several, return_logits=True)
            logits = np.clip(found["masks"][0, chosen], -32, 32)
            findings.masks(f"predictor, {kind}", logits, low)
            findings.difference(f"predictor, {kind}: IoU", found["iou"][0, chosen], iou, IOU_LIMIT)
