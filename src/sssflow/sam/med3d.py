"""SAM-Med3D: SAM with three spatial axes; names and shapes of the official checkpoints.

The facts are those of the public model `vit_b_ori` (uni-medical/SAM-Med3D, arXiv 2310.15161): ViT
with 16^3 patches, width 768, 12 blocks of 12 heads, windows of 14^3 tokens but for blocks 2, 5, 8
and 11, input 128^3, prompt width 384, no boxes. Three peculiarities of the trained model are kept,
because its weights know nothing else: windows larger than the token grid are filled with zeros
that take part in attention; the decomposed relative positions sit on other axes than their names
say (`_relative`); and the position code of the image swaps its first two axes (`dense_position`).

Letters: b samples, c channels, d i, h j, w l token axes of queries and keys, n objects, p points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 16
MASK_CELLS = 4
"""Input voxels per side of one value of a low-resolution mask."""


@dataclass(frozen=True)
class Med3dShape:
    """Sizes of the model; the defaults are the official ones.

    `width` must be a multiple of `heads`, `prompt_width` of 24 (8 heads of half width; 3 codes).
    """

    input_size: int = 128
    width: int = 768
    depth: int = 12
    heads: int = 12
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    prompt_width: int = 384
    decoder_width: int = 2048

    @property
    def tokens(self) -> int:
        """Tokens along each axis."""
        return self.input_size // PATCH


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (b, c, ...)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        last = x.movedim(1, -1)
        normed = functional.layer_norm(last, last.shape[-1:], self.weight, self.bias, eps=1e-6)
        return normed.movedim(-1, 1)


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        out: Tensor = self.lin2(self.act(self.lin1(x)))
        return out


class ImageAttention(nn.Module):
    """Self-attention on a cube of `side`^3 tokens with relative positions."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        for axis in "dhw":
            table = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
            self.register_parameter(f"rel_pos_{axis}", table)

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, h, w, c) to the same."""
        b, d, h, w, c = x.shape
        qkv = self.qkv(x).view(b, d * h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)
        logits = (q * (c // self.heads) ** -0.5) @ k.transpose(1, 2)
        logits = logits.view(-1, d, h, w, d, h, w) + self._relative(q.view(-1, d, h, w, q.shape[2]))
        out = logits.view(-1, d * h * w, d * h * w).softmax(-1) @ v
        out = out.view(b, self.heads, d, h, w, -1).permute(0, 2, 3, 4, 1, 5).reshape(b, d, h, w, c)
        projected: Tensor = self.proj(out)
        return projected

    def _relative(self, q: Tensor) -> Tensor:
        """What is added for query (d, h, w) and key (i, j, l), as the official code adds it.

        D[d,h,w,l] + H[d,h,i,l] + W[d,h,j,l] with D, H, W the products of the query at the first
        three indices and the table of axis d, h, w at the offset to the last; for the second and
        third, the key's index stands where the query's w should.
        """
        d, h, w = (
            torch.einsum(product, q, self._table(axis, q.shape[2]))
            for axis, product in (
                ("d", "bdhwc,dkc->bdhwk"),
                ("h", "bdhwc,hkc->bdhwk"),
                ("w", "bdhwc,wkc->bdhwk"),
            )
        )
        return d[:, :, :, :, None, None, :] + h[:, :, :, None, :, None, :] + w[:, :, :, None, None]

    def _table(self, axis: str, side: int) -> Tensor:
        """(side, side, c): the table's row for each pair of query and key index."""
        table: Tensor = getattr(self, f"rel_pos_{axis}")
        index = torch.arange(side, device=table.device)
        return table[index[:, None] - index[None, :] + side - 1]


class Block(nn.Module):
    """Attention and MLP with residuals; attention within windows if `window` is not 0."""

    def __init__(self, shape: Med3dShape, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = ImageAttention(shape.width, shape.heads, window or shape.tokens)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = Mlp(shape.width, 4 * shape.width, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, h, w, c) to the same."""
        normed = self.norm1(x)
        x = x + (self._windowed(normed) if self.window else self.attn(normed))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _windowed(self, x: Tensor) -> Tensor:
        b, side, _, _, c = x.shape
        per_axis, size = math.ceil(side / self.window), self.window
        extra = per_axis * size - side
        padded = functional.pad(x, (0, 0, 0, extra, 0, extra, 0, extra))
        split = padded.view(b, per_axis, size, per_axis, size, per_axis, size, c)
        split = split.permute(0, 1, 3, 5, 2, 4, 6, 7)
        out: Tensor = self.attn(split.reshape(-1, size, size, size, c)).view(split.shape)
        joined = out.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(padded.shape)
        cut: Tensor = joined[:, :side, :side, :side]
        return cut


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, width, PATCH, stride=PATCH)


class ImageEncoder(nn.Module):
    """(b, 1, S, S, S) to (b, c, S/16, S/16, S/16)."""

    def __init__(self, shape: Med3dShape) -> None:
        super().__init__()
        side, out = shape.tokens, shape.prompt_width
        self.patch_embed = _PatchEmbed(shape.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, side, shape.width))
        self.blocks = nn.ModuleList(
            Block(shape, 0 if i in shape.global_blocks else shape.window)
            for i in range(shape.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(shape.width, out, 1, bias=False),
            ChannelNorm(out),
            nn.Conv3d(out, out, 3, padding=1, bias=False),
            ChannelNorm(out),
        )

    def forward(self, volume: Tensor) -> Tensor:
        """Features of volumes with mean 0 and standard deviation 1 in the foreground."""
        x = self.patch_embed.proj(volume).movedim(1, -1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.movedim(-1, 1))
        return out


class _PositionCode(nn.Module):
    """Random Fourier codes: sine, cosine and sine again of a third of the width each."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))

    def forward(self, at: Tensor) -> Tensor:
        """(..., 3) in [0, 1] to (..., 3 * features)."""
        angle = 2 * math.pi * ((2 * at - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)


class PromptEncoder(nn.Module):
    """Clicks and a rough mask as tokens."""

    def __init__(self, shape: Med3dShape) -> None:
        super().__init__()
        width = shape.prompt_width
        self.input_size, self.tokens = shape.input_size, shape.tokens
        self.pe_layer = _PositionCode(width // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, 4, 2, stride=2),
            ChannelNorm(4),
            nn.GELU(),
            nn.Conv3d(4, 16, 2, stride=2),
            ChannelNorm(16),
            nn.GELU(),
            nn.Conv3d(16, width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, width)

    def dense_position(self) -> Tensor:
        """(1, c, d, h, w); the code of token (d, h, w) is that of the point (h, d, w)."""
        at = (torch.arange(self.tokens, device=self._device) + 0.5) / self.tokens
        d, h, w = torch.meshgrid(at, at, at, indexing="ij")
        code: Tensor = self.pe_layer(torch.stack([h, d, w], dim=-1)).movedim(-1, 0)[None]
        return code

    def clicks(self, points_np3: Tensor, labels_np: Tensor) -> Tensor:
        """(n, p + 1, c): one token per click (label 1 inside, 0 outside) and one for "no more"."""
        code = self.pe_layer((points_np3 + 0.5) / self.input_size)
        both = torch.cat(list(self.point_embeddings.parameters()))
        end = self.not_a_point_embed.weight.expand(len(code), 1, -1)
        return torch.cat([code + both[labels_np], end], dim=1)

    @property
    def _device(self) -> torch.device:
        return self.no_mask_embed.weight.device


class Attention(nn.Module):
    """Attention of 8 heads, its inner width that of the model divided by `shrink`."""

    def __init__(self, width: int, shrink: int = 1) -> None:
        super().__init__()
        inner = width // shrink
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(n, queries, c), twice (n, keys, c) to (n, queries, c)."""
        heads = (
            projection(x).unflatten(-1, (8, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        out = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(out)
        return projected


class TwoWayBlock(nn.Module):
    """Tokens to themselves, to the image, through an MLP; then the image to the tokens."""

    def __init__(self, width: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, 2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_code: Tensor, image_code: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both streams, moved on; the first block's tokens are their own code."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            coded = tokens + token_code
            tokens = tokens + self.self_attn(coded, coded, tokens)
        tokens = self.norm1(tokens)
        keys = image + image_code
        seen = self.cross_attn_token_to_image(tokens + token_code, keys, image)
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp(tokens))
        told = self.cross_attn_image_to_token(keys, tokens + token_code, tokens)
        return tokens, self.norm4(image + told)


class TwoWayTransformer(nn.Module):
    """Two such blocks and a last look of the tokens at the image."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, hidden, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = Attention(width, 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image: Tensor, image_code: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, voxels, c), the same, (n, tokens, c) to tokens and image."""
        code = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, code, image_code)
        last = self.final_attn_token_to_image(tokens + code, image + image_code, image)
        return self.norm_final_attn(tokens + last), image


class _Perceptron(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        out: Tensor = last(second(first(x).relu()).relu())
        return out


class MaskDecoder(nn.Module):
    """Four masks with IoU estimates; the first is the one for unambiguous prompts."""

    def __init__(self, shape: Med3dShape) -> None:
        super().__init__()
        width = shape.prompt_width
        self.transformer = TwoWayTransformer(width, shape.decoder_width)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(4, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(width, width // 4, 2, stride=2),
            ChannelNorm(width // 4),
            nn.GELU(),
            nn.ConvTranspose3d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            _Perceptron(width, width, width // 8) for _ in range(4)
        )
        self.iou_prediction_head = _Perceptron(width, 256, 4)

    def forward(self, image: Tensor, code: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Single mask (n, 1, S/4, S/4, S/4) in logits and its IoU estimate (n,)."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        flat, flat_code = (x.flatten(2).transpose(1, 2) for x in (image, code.expand_as(image)))
        tokens, flat = self.transformer(flat, flat_code, tokens)
        fine = self.output_upscaling(flat.transpose(1, 2).reshape(image.shape))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])
        mask = torch.einsum("nc,ncdhw->ndhw", weights, fine)[:, None]
        return mask, self.iou_prediction_head(tokens[:, 0])[:, 0]


class SamMed3d(nn.Module):
    """The three parts under their official names."""

    def __init__(self, shape: Med3dShape) -> None:
        super().__init__()
        self.shape = shape
        self.image_encoder = ImageEncoder(shape)
        self.prompt_encoder = PromptEncoder(shape)
        self.mask_decoder = MaskDecoder(shape)

    def segment(
        self, features: Tensor, points_np3: Tensor, labels_np: Tensor, low_n1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One pass of the decoder.

        Args:
            features: (n, c, S/16, ...) of each object's volume.
            points_np3: Voxel indices in array order; p may be 0 (a mask prompt alone).
            labels_np: int64, 1 inside, 0 outside.
            low_n1: Logits (n, 1, S/4, ...) of the pass before; zeros at first, as in training.

        Returns:
            Logits as `low_n1`, and the estimated IoU (n,).
        """
        sparse = self.prompt_encoder.clicks(points_np3, labels_np)
        if points_np3.shape[1] == 0:
            sparse = sparse[:, :0]
        image = features + self.prompt_encoder.mask_downscaling(low_n1)
        mask, iou = self.mask_decoder(image, self.prompt_encoder.dense_position(), sparse)
        return mask, iou
