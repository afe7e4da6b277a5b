"""SAM-2's parts as modules with the inputs and outputs of `contracts.sam2_graphs`.

Weights and layers are the package's own. What does not survive the way to ONNX is replaced by its
equal: the complex rotary code by cosines and sines, the resized position embedding and the position
codes by constants of the input size.

Letters as in `contracts.sam2_graphs`; c channels, y and x rows and columns, h heads, n tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor, nn
from torch.nn import functional

from sssflow.contracts.sam2_graphs import GraphName, Sam2Rules
from sssflow.sam.build import STRIDE
from sssflow.sam.heads import Choice, FeatureMaps, remember


class ImageEncoderGraph(nn.Module):
    """Normalised images to the three feature maps that the decoder takes."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the contract."""
        fine, middle, coarse = self.model.forward_image(image)["backbone_fpn"]
        return fine, middle, coarse + self.model.no_mem_embed.view(1, -1, 1, 1)


class MaskDecoderGraph(nn.Module):
    """Features of one image and L prompts to all four masks; no point is padded."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.encoder = model.sam_prompt_encoder
        self.decoder = model.sam_mask_decoder
        self.position: Tensor
        self.register_buffer("position", self.encoder.get_dense_pe())

    def forward(
        self,
        feat_s0: Tensor,
        feat_s1: Tensor,
        embed: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the contract."""
        sparse = self.encoder._embed_points(point_coords, point_labels, pad=False)
        without = self.encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        dense = torch.where(
            has_mask.view(-1, 1, 1, 1) > 0.5, self.encoder._embed_masks(mask_input), without
        )
        masks, iou, tokens, score = self.decoder.predict_masks(
            image_embeddings=embed.expand(point_coords.shape[0], -1, -1, -1),
            image_pe=self.position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[feat_s0, feat_s1],
        )
        return masks, iou, score, tokens


class RealRotaryAttention(RoPEAttention):  # type: ignore[misc]
    """The package's rotary attention without complex numbers; same weights, same bits."""

    def __init__(self, original: RoPEAttention, side: int) -> None:
        """Take over an attention for a square map of `side` x `side` tokens."""
        nn.Module.__init__(self)
        self.q_proj, self.k_proj = original.q_proj, original.k_proj
        self.v_proj, self.out_proj = original.v_proj, original.out_proj
        self.num_heads = original.num_heads
        code = original.compute_cis(end_x=side, end_y=side)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", code.real.contiguous())
        self.register_buffer("sin", code.imag.contiguous())

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """Attention of q (b, n, c) to k and v, whose last `num_k_exclude_rope` have no place."""
        q = self._separate_heads(self.q_proj(q), self.num_heads)
        k = self._separate_heads(self.k_proj(k), self.num_heads)
        v = self._separate_heads(self.v_proj(v), self.num_heads)
        placed = k.shape[2] - num_k_exclude_rope
        maps = torch.unflatten(k[:, :, :placed], 2, (-1, len(self.cos)))
        turned = self._turn(maps).flatten(2, 3)
        k = torch.cat([turned, k[:, :, placed:]], dim=2)
        out = functional.scaled_dot_product_attention(self._turn(q), k, v)
        attended: Tensor = self.out_proj(self._recombine_heads(out))
        return attended

    def _turn(self, x: Tensor) -> Tensor:
        """Turn each pair of channels of (..., n, c) by the angle of its place."""
        real, imaginary = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
        turned = (real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos)
        return torch.stack(turned, dim=-1).flatten(-2)


class MemoryAttentionGraph(nn.Module):
    """Coarse features of a slice after attention to T remembered slices and P pointers."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        side = model.image_size // STRIDE
        self.width, self.memory_width = int(model.hidden_dim), int(model.mem_dim)
        self.attention = copy.deepcopy(model.memory_attention)
        for layer in self.attention.layers:
            layer.self_attn = RealRotaryAttention(layer.self_attn, side)
            layer.cross_attn_image = RealRotaryAttention(layer.cross_attn_image, side)
        self.has_pointer_time = bool(model.add_tpos_enc_to_obj_ptrs)
        self.project_time = model.obj_ptr_tpos_proj
        self.position: Tensor
        self.memory_position: Tensor
        self.slot_code: Tensor
        self.no_memory: Tensor
        neck, encoder = model.image_encoder.neck, model.memory_encoder
        places = neck.position_encoding(torch.zeros(1, 1, side, side))
        self.register_buffer("position", places.flatten(2).permute(2, 0, 1))
        places = encoder.position_encoding(torch.zeros(1, 1, side, side))
        self.register_buffer("memory_position", places.flatten(2).permute(0, 2, 1))
        self.register_buffer("slot_code", model.maskmem_tpos_enc.detach()[:, 0])
        self.register_buffer("no_memory", model.no_mem_embed.detach().view(1, -1, 1, 1))

    def forward(
        self,
        embed: Tensor,
        memory: Tensor,
        memory_slot: Tensor,
        pointers: Tensor,
        pointer_time: Tensor,
    ) -> Tensor:
        """See the contract."""
        coarse = (embed - self.no_memory).flatten(2).permute(2, 0, 1)
        batch = pointers.shape[0]
        maps = memory.flatten(3).permute(1, 3, 0, 2).flatten(0, 1)
        codes = (self.memory_position + self.slot_code[memory_slot]).flatten(0, 1)[:, None]
        parts = self.width // self.memory_width
        tokens = torch.unflatten(pointers, 2, (parts, self.memory_width))
        tokens = tokens.flatten(1, 2).permute(1, 0, 2)
        if self.has_pointer_time:
            times = self.project_time(get_1d_sine_pe(pointer_time, dim=self.width))
        else:
            times = pointer_time[:, None] * torch.zeros(1, self.memory_width)
        times = times.repeat_interleave(parts, dim=0)[:, None]
        conditioned = self.attention(
            curr=[coarse],
            curr_pos=[self.position.expand(-1, batch, -1)],
            memory=torch.cat([maps, tokens]),
            memory_pos=torch.cat([codes, times]).expand(-1, batch, -1),
            num_obj_ptr_tokens=tokens.shape[0],
        )
        return torch.as_tensor(conditioned.permute(1, 2, 0).unflatten(2, embed.shape[-2:]))


class MemoryEncoderGraph(nn.Module):
    """A segmented slice to what is remembered of it, and the pointer of its object."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, embed: Tensor, mask: Tensor, object_score: Tensor, mask_token: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the contract."""
        coarse = embed - self.model.no_mem_embed.view(1, -1, 1, 1)
        # Only the coarse map is read.
        features = FeatureMaps(coarse, coarse, coarse, coarse)
        choice = Choice(mask, object_score, mask_token)
        entry = remember(self.model, features, choice, object_score, from_points=False)
        return entry["maskmem_features"], entry["obj_ptr"]


def graph_module(name: GraphName, model: SAM2Base) -> nn.Module:
    """The module of a graph, in evaluation mode."""
    kinds: dict[GraphName, type[nn.Module]] = {
        "encoder": ImageEncoderGraph,
        "decoder": MaskDecoderGraph,
        "memory_attention": MemoryAttentionGraph,
        "memory_encoder": MemoryEncoderGraph,
    }
    return kinds[name](model).eval()


@contextmanager
def constant_positions(model: SAM2Base) -> Iterator[None]:
    """Hold Hiera's position embedding, resized to the input, constant while graphs are made."""
    trunk = model.image_encoder.trunk
    side = model.image_size // 4
    with torch.no_grad():
        embedding = trunk._get_pos_embed((side, side)).contiguous()
        # Fills the package's caches of position codes with real tensors before any tracing.
        model.forward_image(torch.zeros(1, 3, model.image_size, model.image_size))
        tokens = model.image_size // STRIDE
        model.memory_encoder.position_encoding(torch.zeros(1, 1, tokens, tokens))
    trunk._get_pos_embed = lambda hw: embedding
    try:
        yield
    finally:
        del trunk._get_pos_embed


def rules_of(model: SAM2Base, *, hints: bool) -> Sam2Rules:
    """What a caller of the graphs must know beside the tensors."""
    return Sam2Rules(
        hints=hints,
        multimask_min_points=model.multimask_min_pt_num,
        multimask_max_points=model.multimask_max_pt_num,
        memory_slots=model.num_maskmem,
        max_pointers=model.max_obj_ptrs_in_encoder,
        pointers_signed=bool(
            model.add_tpos_enc_to_obj_ptrs and model.use_signed_tpos_enc_to_obj_ptrs
        ),
        pointers_past_only=bool(model.only_obj_ptrs_in_the_past_for_eval),
    )
