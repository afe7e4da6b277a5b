"""Pre-training of nano SAM-2 on procedural shapes: prompted stills, then memory over slices.

With one thread the same configuration gives the same bits. Follows the terms and the prompt mix of
SAM-2 (arXiv 2408.00714, appendix D), made small.

Letters: b scenes, n objects, t slices, y rows, x columns.
"""

from __future__ import annotations

import copy
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base

import sssflow
from sssflow.contracts.model import IntensityRule
from sssflow.errors import DataError
from sssflow.sam.build import build_sam2, set_input_size
from sssflow.sam.config import PretrainConfig
from sssflow.sam.pretrain_data import SceneSource, ShapeSource, labelled_source
from sssflow.sam.pretrain_steps import clip_loss, still_loss
from sssflow.sam.weights_io import load_weights, save_weights

_LOG = logging.getLogger(__name__)
_FLOOR = 0.02


def run(
    config: PretrainConfig,
    out: Path,
    *,
    dataset: Path | None = None,
    intensity: IntensityRule | None = None,
) -> Path:
    """Train nano SAM-2 and write `out/nano.safetensors` and `out/nano.json`.

    Args:
        config: Settings.
        out: Folder of the result. A snapshot is written at every tenth of the training.
        dataset: A manifest; its *labelled* training cases join the procedural scenes.
        intensity: How voxel values of its cases become grey values; None: by modality.

    Returns:
        Path of the weights.

    Raises:
        DataError: The dataset or the starting weights cannot be read, or the loss is not finite.
    """
    source: SceneSource = ShapeSource()
    if dataset is not None:
        source = labelled_source(dataset, config.dataset_share, intensity)
    path = out / "nano.safetensors"
    with _fixed_threads(config.threads):
        for part, settings in enumerate(parts_of(config, out)):
            is_last = part == len(config.refine)
            target = path if is_last else _part_path(out, part)
            _run_part(settings, target, source, part=part, whole=config)
    return path


def parts_of(config: PretrainConfig, out: Path) -> list[PretrainConfig]:
    """The settings of each part; every later one starts from what the one before stored."""
    later = [
        config.model_copy(
            update={
                **refine.model_dump(),
                "start_from": str(_part_path(out, part)),
                "clip_from": 0.0,
            }
        )
        for part, refine in enumerate(config.refine)
    ]
    return [config, *later]


def _part_path(out: Path, part: int) -> Path:
    return out / f"part{part + 1}.safetensors"


def _run_part(
    config: PretrainConfig,
    path: Path,
    source: SceneSource,
    *,
    part: int,
    whole: PretrainConfig,
) -> None:
    """Train with a fresh optimiser and its own stream of random numbers; store the average."""
    model = _new_model(config)
    rng = np.random.default_rng([config.seed, 20 + part])

    def store(averaged: SAM2Base, step: int) -> None:
        facts = {**_provenance(whole, source), "part": part + 1, "step": step}
        save_weights(path, averaged.state_dict(), facts)

    _train(model, config, source, rng, store)


def _new_model(config: PretrainConfig) -> SAM2Base:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_sam2("nano", input_size=config.input_sizes[0])
        _align_attention(model)
    if config.start_from is not None:
        load_weights(model, Path(config.start_from))
    model.multimask_min_pt_num = 0 if config.track_best_of_three else 1
    return model.train()


@torch.no_grad()
def _align_attention(model: SAM2Base) -> None:
    """Start the decoder's cross-attention as a similarity of positions: keys read like queries.

    Tokens and image carry the same position code, so that a prompt looks at its own place from
    the first step; with independent projections this has to be found by training.
    """
    transformer = model.sam_mask_decoder.transformer
    blocks = [
        getattr(x, f"cross_attn_{w}")
        for x in transformer.layers
        for w in ("token_to_image", "image_to_token")
    ]
    for attention in [*blocks, transformer.final_attn_token_to_image]:
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.k_proj.bias.copy_(attention.q_proj.bias)


def _train(
    model: SAM2Base,
    config: PretrainConfig,
    source: SceneSource,
    rng: np.random.Generator,
    store: Callable[[SAM2Base, int], None],
) -> None:
    averaged = copy.deepcopy(model).eval()
    optimiser = _optimiser(model, config)
    last = min(config.steps, config.stop_after or config.steps)
    recent: dict[str, list[float]] = {"still": [], "clip": []}
    started = time.monotonic()
    for step in range(last):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        size = int(rng.choice(config.input_sizes))
        set_input_size(model, size)
        is_clip = step >= config.clip_from * config.steps and rng.uniform() < config.clip_share
        draw = clip_loss if is_clip else still_loss
        loss = draw(model, source, rng, size, config)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                "The loss is not finite; training stopped before the weights were touched.",
                where=f"step {step + 1} of {last}",
                found=value,
                action="Look at the labelled cases; if they are sound, lower learning_rate.",
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_gradient)
        optimiser.step()
        _average(averaged, model, min(config.ema_decay, (1 + step) / (10 + step)))
        recent["clip" if is_clip else "still"].append(value)
        if (step + 1) % config.log_every == 0:
            _report(step + 1, config, recent, time.monotonic() - started)
            recent = {"still": [], "clip": []}
        if (step + 1) % max(1, config.steps // 10) == 0 or step + 1 == last:
            store(averaged, step + 1)


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear rise over `warmup_steps`, then half a cosine down to 2 % of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def _optimiser(model: SAM2Base, config: PretrainConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def _average(averaged: SAM2Base, model: SAM2Base, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


def _report(
    step: int, config: PretrainConfig, recent: dict[str, list[float]], seconds: float
) -> None:
    means = ", ".join(f"{k} {np.mean(v):.4f}" for k, v in recent.items() if v)
    last = min(config.steps, config.stop_after or config.steps)
    left = seconds / step * (last - step)
    _LOG.info("step %d of %d: %s; %.0f s left", step, last, means, left)


def _provenance(config: PretrainConfig, source: SceneSource) -> dict[str, Any]:
    return {
        "model": "nano SAM-2 2.1",
        "command": "sssflow sam2 pretrain",
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(),
        "data": source.description,
        "versions": {
            "sssflow": sssflow.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


@contextmanager
def _fixed_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
