"""The two kinds of training steps: prompted stills, and clips followed through memory.

Letters: b scenes, n objects, t slices, y rows, x columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from sssflow.sam.build import MASK_STRIDE
from sssflow.sam.config import PretrainConfig
from sssflow.sam.heads import (
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
from sssflow.sam.hints import carried_hint, draw_hints
from sssflow.sam.losses import prompt_loss
from sssflow.sam.pretrain_data import SceneSource
from sssflow.sam.scenes import Scene
from sssflow.sam.shape_prompts import KIND_SHARES, KINDS, correction, draw_prompts
from sssflow.sam.shapes import Floats, Random

Masks = NDArray[np.bool_]
Points = tuple[Tensor, Tensor]

_CLIP_KINDS = ("box", "box_point", "points", "box_points")
_CLIP_SHARES = (0.25, 0.55, 0.1, 0.1)


def still_loss(
    model: SAM2Base, source: SceneSource, rng: Random, size: int, config: PretrainConfig
) -> Tensor:
    """Loss of one batch of single slices, all objects prompted in the same way."""
    scenes = [source.draw(rng, size=size, length=1) for _ in range(config.images_per_step)]
    masks, owner = _pick_objects(rng, scenes, config.objects_per_image, config.hard_share)
    images = torch.from_numpy(np.stack([s.image_tyx[0] for s in scenes]))[:, None]
    features = image_features(model, images).take(owner)
    conditioned = without_memory(model, features)
    target = _half(masks[:, 0])
    grey = _on_mask_grid(images)[owner.numpy()] if config.grey_hints else None
    out, points = _prompted(
        model, conditioned, features, rng, masks[:, 0], KINDS, KIND_SHARES, grey
    )
    loss = prompt_loss(out, target, config)
    if points is not None and rng.uniform() < 0.25:
        loss = 0.5 * (
            loss
            + _corrected_loss(model, conditioned, features, rng, masks, out, points, config, grey)
        )
    return loss


def clip_loss(
    model: SAM2Base, source: SceneSource, rng: Random, size: int, config: PretrainConfig
) -> Tensor:
    """Loss of clips: prompted on the first slice (and at times a later one), tracked elsewhere."""
    length = int(rng.integers(config.clip_length[0], config.clip_length[1] + 1))
    scenes = [source.draw(rng, size=size, length=length)]
    masks, owner = _pick_objects(rng, scenes, config.clip_objects, config.hard_share)
    images = torch.from_numpy(np.concatenate([s.image_tyx for s in scenes]))[:, None]
    features = image_features(model, images)
    grey = _on_mask_grid(images) if config.grey_hints else None
    prompted = _conditioning_slices(rng, masks)
    true_presence = rng.uniform() < 0.5
    conditioning: dict[int, dict[str, Any]] = {}
    tracked: dict[int, dict[str, Any]] = {}
    losses = []
    found: dict[int, Tensor] = {}
    for t in [*prompted, *(t for t in range(length) if t not in prompted)]:
        here = features.take(owner * length + t)
        if t in prompted:
            alone = without_memory(model, here)
            seen = None if grey is None else grey[(owner * length + t).numpy()]
            out, points = _prompted(
                model, alone, here, rng, masks[:, t], _CLIP_KINDS, _CLIP_SHARES, seen
            )
            count = 0 if points is None else points[1].shape[1]
        else:
            recalled = recall(model, here, t, length, conditioning=conditioning, tracked=tracked)
            hint = _carried(found[t - 1], grey, owner * length + t)
            out, count = decode(model, recalled, here, no_points(len(owner)), hint), 0
        target = _half(masks[:, t])
        losses.append(prompt_loss(out, target, config))
        score = 20.0 * (target.amax(dim=(2, 3)) >= 0.5) - 10.0 if true_presence else out.score_n1
        kept = choose(model, out, point_count=count)
        found[t] = kept.logits_n1yx.detach()
        entry = remember(model, here, kept, score.detach(), from_points=t in prompted)
        (conditioning if t in prompted else tracked)[t] = entry
    return torch.stack(losses).mean()


def _pick_objects(
    rng: Random, scenes: list[Scene], most: int, hard_share: float
) -> tuple[Masks, Tensor]:
    """Masks (n, t, y, x) of up to `most` objects of each scene, and the scene of each object."""
    masks, owner = [], []
    for index, scene in enumerate(scenes):
        count = min(most, len(scene.masks_otyx))
        chance = _chances(scene.masks_otyx[:, 0], hard_share) if hard_share else None
        picked = rng.choice(len(scene.masks_otyx), count, replace=False, p=chance)
        masks.append(scene.masks_otyx[picked])
        owner += [index] * count
    return np.concatenate(masks), torch.tensor(owner)


def _chances(masks_oyx: Masks, hard_share: float) -> NDArray[np.float64]:
    """Chance of each object: even, mixed with the share of its box that it leaves empty."""
    empty = []
    for mask in masks_oyx:
        box = np.count_nonzero(mask.any(axis=0)) * np.count_nonzero(mask.any(axis=1))
        empty.append(1.05 - np.count_nonzero(mask) / box)
    even = np.full(len(masks_oyx), 1 / len(masks_oyx))
    hard = np.asarray(empty) / np.sum(empty)
    return np.asarray((1 - hard_share) * even + hard_share * hard)


def _conditioning_slices(rng: Random, masks_ntyx: Masks) -> list[int]:
    present = masks_ntyx.sum(axis=(2, 3)).min(axis=0) >= 12
    later = np.flatnonzero(present[1:]) + 1
    if len(later) and rng.uniform() < 0.4:
        return [0, int(rng.choice(later))]
    return [0]


def _prompted(
    model: SAM2Base,
    conditioned: Tensor,
    features: FeatureMaps,
    rng: Random,
    masks_nyx: Masks,
    kinds: tuple[str, ...],
    shares: tuple[float, ...],
    grey_nyx: Floats | None,
) -> tuple[HeadOutput, Points | None]:
    drawn = draw_prompts(rng, masks_nyx, kinds[int(rng.choice(len(kinds), p=shares))])
    points: Points | None = None
    if drawn.points_np2 is not None and drawn.labels_np is not None:
        points = torch.from_numpy(drawn.points_np2), torch.from_numpy(drawn.labels_np)
    rough = None if drawn.mask_n1yx is None else drawn.mask_n1yx[:, 0]
    size = masks_nyx.shape[-1]
    hints = draw_hints(drawn.points_np2, drawn.labels_np, rough, size, grey_nyx)
    return decode(model, conditioned, features, points, torch.from_numpy(hints)[:, None]), points


def _corrected_loss(
    model: SAM2Base,
    conditioned: Tensor,
    features: FeatureMaps,
    rng: Random,
    masks_ntyx: Masks,
    out: HeadOutput,
    points: Points,
    config: PretrainConfig,
    grey_nyx: Floats | None,
) -> Tensor:
    """Loss after one more click on the largest error, with the first answer as mask prompt."""
    first = choose(model, out, point_count=points[1].shape[1]).logits_n1yx.detach()
    size = masks_ntyx.shape[-1]
    large = torch.nn.functional.interpolate(first, size=(size, size), mode="bilinear")
    click, label = correction(rng, large[:, 0].numpy() > 0, masks_ntyx[:, 0])
    more = (
        torch.cat([points[0], torch.from_numpy(click)], dim=1),
        torch.cat([points[1], torch.from_numpy(label).to(points[1].dtype)], dim=1),
    )
    hints = draw_hints(more[0].numpy(), more[1].numpy(), first[:, 0].numpy(), size, grey_nyx)
    again = decode(model, conditioned, features, more, torch.from_numpy(hints)[:, None])
    return prompt_loss(again, _half(masks_ntyx[:, 0]), config)


def _on_mask_grid(images_b1yx: Tensor) -> Floats:
    """(b, y / 4, x / 4) grey values, averaged as `Window.crop` does."""
    side = images_b1yx.shape[-1] // MASK_STRIDE
    small = torch.nn.functional.interpolate(
        images_b1yx, size=(side, side), mode="bilinear", antialias=True
    )
    return small[:, 0].numpy()


def _carried(logits_n1yx: Tensor, grey_byx: Floats | None, now_n: Tensor) -> Tensor:
    if grey_byx is None:
        return torch.from_numpy(carried_hint(logits_n1yx.numpy()))
    now = now_n.numpy()
    return torch.from_numpy(carried_hint(logits_n1yx.numpy(), grey_byx[now - 1], grey_byx[now]))


def _half(masks_nyx: Masks) -> Tensor:
    """Coverage (n, 1, y / 2, x / 2) of masks at half of their size."""
    whole = torch.from_numpy(masks_nyx.astype(np.float32))[:, None]
    return torch.nn.functional.avg_pool2d(whole, 2)
