"""SAM-2's prompt encoder, mask decoder and memory as plain functions, for inference and training.

The package's `track_step` picks one mask inside and cuts the gradient of absent objects; training
needs all four masks, and both need the same code. Weights and modules are the package's.

Letters: b slices, n objects, c channels, y rows, x columns of the mask grid (input / 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor
from torch.nn import functional

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""What SAM-2 was trained with, for values in [0, 1]."""


@dataclass(frozen=True)
class FeatureMaps:
    """Image features of b slices: maps at stride 4, 8 and 16, and the position code of the last."""

    fine_bcyx: Tensor
    middle_bcyx: Tensor
    coarse_bcyx: Tensor
    position_bcyx: Tensor

    def __len__(self) -> int:
        return int(self.coarse_bcyx.shape[0])

    def take(self, index_n: Tensor) -> FeatureMaps:
        """The features of slice `index_n[i]` for every object i."""
        maps = (self.fine_bcyx, self.middle_bcyx, self.coarse_bcyx, self.position_bcyx)
        return FeatureMaps(*(m.index_select(0, index_n) for m in maps))


@dataclass(frozen=True)
class HeadOutput:
    """All four masks of the decoder: index 0 is the single mask, 1 to 3 the ambiguous ones."""

    logits_n4yx: Tensor
    iou_n4: Tensor
    tokens_n4c: Tensor
    score_n1: Tensor


@dataclass(frozen=True)
class Choice:
    """The mask that was kept for each object, with its IoU estimate and decoder token."""

    logits_n1yx: Tensor
    iou_n1: Tensor
    token_nc: Tensor


def image_features(model: SAM2Base, image_b1yx: Tensor) -> FeatureMaps:
    """Encode grey slices in [0, 1] at the model's input size (three equal channels)."""
    mean = image_b1yx.new_tensor(IMAGE_MEAN).view(1, 3, 1, 1)
    std = image_b1yx.new_tensor(IMAGE_STD).view(1, 3, 1, 1)
    out = model.forward_image((image_b1yx - mean) / std)
    fine, middle, coarse = out["backbone_fpn"]
    return FeatureMaps(fine, middle, coarse, out["vision_pos_enc"][-1])


def without_memory(model: SAM2Base, features: FeatureMaps) -> Tensor:
    """Coarse features of a slice that is looked at alone."""
    alone: Tensor = features.coarse_bcyx + model.no_mem_embed.view(1, -1, 1, 1)
    return alone


def decode(
    model: SAM2Base,
    conditioned_ncyx: Tensor,
    features: FeatureMaps,
    points: tuple[Tensor, Tensor] | None,
    mask_prompt_n1yx: Tensor | None = None,
) -> HeadOutput:
    """Run prompt encoder and mask decoder for n objects.

    Args:
        model: The model.
        conditioned_ncyx: Coarse features of each object, with or without memory.
        features: The fine maps of each object (`FeatureMaps.take`).
        points: Coordinates (n, p, 2) as (x, y) input pixel indices and labels (n, p): 1 inside,
            0 outside, 2 and 3 the corners of a box. Every object has the same p.
        mask_prompt_n1yx: Logits at the mask size.
    """
    encoder = model.sam_prompt_encoder
    sparse, dense = encoder(points=points, boxes=None, masks=mask_prompt_n1yx)
    count = conditioned_ncyx.shape[0]
    if sparse.shape[0] != count:  # without any prompt the encoder answers for one object
        sparse, dense = sparse.expand(count, -1, -1), dense.expand(count, -1, -1, -1)
    masks, iou, tokens, score = model.sam_mask_decoder.predict_masks(
        image_embeddings=conditioned_ncyx,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=[features.fine_bcyx, features.middle_bcyx],
    )
    return HeadOutput(masks, iou, tokens, score)


def no_points(count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """What SAM-2 feeds its prompt encoder on a slice that it only tracks."""
    return (
        torch.zeros(count, 1, 2, device=device),
        -torch.ones(count, 1, dtype=torch.int32, device=device),
    )


def choose(model: SAM2Base, out: HeadOutput, *, point_count: int) -> Choice:
    """The package's rule: up to one point is ambiguous and the best of three masks is kept.

    A box counts as two points. Otherwise the single mask is kept, or, in models that ask for it,
    the best of three where the single one is unstable.
    """
    if model.multimask_min_pt_num <= point_count <= model.multimask_max_pt_num:
        best = out.iou_n4[:, 1:].argmax(dim=1) + 1
        token = best
    else:
        token = best = torch.zeros(len(out.iou_n4), dtype=torch.long, device=out.iou_n4.device)
        decoder = model.sam_mask_decoder
        if decoder.dynamic_multimask_via_stability and not decoder.training:
            masks, iou = decoder._dynamic_multimask_via_stability(out.logits_n4yx, out.iou_n4)
            rows = torch.arange(len(best), device=best.device)
            return Choice(masks, iou, out.tokens_n4c[rows, token])
    rows = torch.arange(len(best), device=best.device)
    logits = out.logits_n4yx[rows, best].unsqueeze(1)
    return Choice(logits, out.iou_n4[rows, best].unsqueeze(1), out.tokens_n4c[rows, token])


def remember(
    model: SAM2Base,
    features: FeatureMaps,
    choice: Choice,
    score_n1: Tensor,
    *,
    from_points: bool,
) -> dict[str, Any]:
    """The memory entry of a slice, in the form that `recall` reads.

    An object that is absent (score not above 0) leaves an empty mask and the no-object pointer.
    """
    present = (score_n1 > 0).to(score_n1.dtype)
    logits = torch.where(present[..., None, None] > 0, choice.logits_n1yx, NO_OBJ_SCORE)
    high = functional.interpolate(
        logits, size=(model.image_size, model.image_size), mode="bilinear", align_corners=False
    )
    flat = _flat(features.coarse_bcyx)
    sizes = [tuple(features.coarse_bcyx.shape[-2:])]
    memory, position = model._encode_new_memory([flat], sizes, high, score_n1, from_points)
    pointer = model.obj_ptr_proj(choice.token_nc)
    pointer = present * pointer + (1 - present) * model.no_obj_ptr
    return {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointer}


def recall(
    model: SAM2Base,
    features: FeatureMaps,
    frame: int,
    frame_count: int,
    *,
    conditioning: Mapping[int, dict[str, Any]],
    tracked: Mapping[int, dict[str, Any]],
    reverse: bool = False,
) -> Tensor:
    """Coarse features of slice `frame` after attention to the memory of each object."""
    sizes = [tuple(features.coarse_bcyx.shape[-2:])]
    conditioned: Tensor = model._prepare_memory_conditioned_features(
        frame_idx=frame,
        is_init_cond_frame=False,
        current_vision_feats=[_flat(features.coarse_bcyx)],
        current_vision_pos_embeds=[_flat(features.position_bcyx)],
        feat_sizes=sizes,
        output_dict={
            "cond_frame_outputs": dict(conditioning),
            "non_cond_frame_outputs": dict(tracked),
        },
        num_frames=frame_count,
        track_in_reverse=reverse,
    )
    return conditioned


def attend(
    model: SAM2Base,
    features: FeatureMaps,
    memories: Sequence[Tensor],
    positions: Sequence[Tensor],
    places: Sequence[int],
) -> Tensor:
    """Coarse features after attention to memories that the caller chose; no object pointers.

    Args:
        model: The model.
        features: Of n objects.
        memories: One or more, each (n, c, y, x).
        positions: Their position codes, alike.
        places: Place of each in time: 0 the slice before, ..., `num_maskmem` - 1 a prompted one.
    """
    codes = [_flat(p) + model.maskmem_tpos_enc[k] for p, k in zip(positions, places, strict=True)]
    out: Tensor = model.memory_attention(
        curr=[_flat(features.coarse_bcyx)],
        curr_pos=[_flat(features.position_bcyx)],
        memory=torch.cat([_flat(m) for m in memories]),
        memory_pos=torch.cat(codes),
        num_obj_ptr_tokens=0,
    )
    return out.permute(1, 2, 0).reshape(features.coarse_bcyx.shape)


def join(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Memory entries of several objects as one batch."""
    return {
        "maskmem_features": torch.cat([e["maskmem_features"] for e in entries]),
        "maskmem_pos_enc": [torch.cat([e["maskmem_pos_enc"][-1] for e in entries])],
        "obj_ptr": torch.cat([e["obj_ptr"] for e in entries]),
    }


def _flat(map_ncyx: Tensor) -> Tensor:
    return map_ncyx.flatten(2).permute(2, 0, 1)
