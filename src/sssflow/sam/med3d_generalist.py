"""SAM-Med3D as the frozen generalist of a training step, and its checkpoints.

Letters: b samples, n objects, s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sssflow.contracts.base import Sha256
from sssflow.errors import UsageError
from sssflow.sam.config import GeneralistConfig
from sssflow.sam.generalist import generalist_digest
from sssflow.sam.med3d import MASK_CELLS, Med3dShape, SamMed3d
from sssflow.sam.promptable import Region
from sssflow.sam.weights_io import put_state, read_state


class Med3dGeneralist:
    """`Generalist` on SAM-Med3D: volumes, clicks and rough masks; a box is not understood.

    The volume is stretched to the model's cube and its axes become (w, h, s), the order x, y, z of
    the training. Clicks go in one after the other, each with the mask of the pass before, as the
    model was trained.
    """

    def __init__(self, model: SamMed3d, config: GeneralistConfig, weights_digest: Sha256) -> None:
        """Freeze a model whose weights are loaded."""
        self._model = model.eval().requires_grad_(False)
        self.name = f"SAM-Med3D, input {model.shape.input_size}"
        self.digest = generalist_digest(config, weights_digest)

    @torch.no_grad()
    def answer(self, image: Tensor, regions: Sequence[Region]) -> tuple[Tensor, Tensor]:
        """See `Generalist.answer`."""
        if image.dim() != 5:
            raise UsageError(
                "SAM-Med3D segments volumes, and the training is on slices.",
                where="generalist.kind",
                found="sam_med3d",
                expected="sam2",
                action="Set generalist.kind=sam2, or train a network for volumes.",
            )
        if any(len(r.points_pd) == 0 and r.rough is None for r in regions):
            raise UsageError(
                "SAM-Med3D does not understand boxes.",
                where="semisam.prompts",
                expected="point, mask or unc",
            )
        if not regions:
            return image.new_zeros((0, *image.shape[2:])), image.new_zeros(0)
        self._model.to(image.device)
        samples = sorted({r.sample for r in regions})
        side = self._model.shape.input_size
        cube = stretched(image[samples].float(), (side, side, side)).permute(0, 1, 4, 3, 2)
        features = self._model.image_encoder(standardised(cube))
        masks, iou = [], []
        for region in regions:
            own = features[samples.index(region.sample)][None]
            mask, estimate = self._clicked(own, region)
            masks.append(stretched(mask.permute(0, 1, 4, 3, 2), image.shape[2:])[0, 0])
            iou.append(estimate[0].clamp(0, 1))
        return torch.stack(masks).float(), torch.stack(iou).float()

    def _clicked(self, features: Tensor, region: Region) -> tuple[Tensor, Tensor]:
        """Logits (1, 1, x, y, z) at the low resolution after all prompts, and the IoU estimate."""
        side = self._model.shape.input_size
        cells = side // MASK_CELLS
        low = features.new_zeros(1, 1, cells, cells, cells)
        if region.rough is not None:
            rough = torch.from_numpy(region.rough).to(features)[None, None]
            low = stretched(rough, (cells, cells, cells)).permute(0, 1, 4, 3, 2)
        points = to_cube(region, side).to(features)
        labels = torch.from_numpy(region.labels_p).to(features.device)
        if len(points) == 0:
            return self._model.segment(features, points[None], labels[None], low)
        iou = features.new_zeros(1)
        for i in range(len(points)):
            one = slice(i, i + 1)
            low, iou = self._model.segment(features, points[None, one], labels[None, one], low)
        return low, iou


def to_cube(region: Region, side: int) -> Tensor:
    """Clicks (p, 3) as voxel indices (x, y, z) of the cube; pixel areas are stretched."""
    grid = torch.tensor(region.support.shape, dtype=torch.float32)
    at = torch.from_numpy(region.points_pd).float().reshape(-1, 3)
    return ((at + 0.5) * side / grid - 0.5).flip(1)


def standardised(volume: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the foreground: voxels above the sample's smallest.

    SAM-Med3D's rule is "above 0", for scans whose background is 0; ours is the same there, and
    holds after any intensity rule. A constant volume becomes 0.
    """
    flat = volume.flatten(1)
    inside = flat > flat.amin(1, keepdim=True)
    count = inside.sum(1, keepdim=True).clamp_min(1)
    mean = (flat * inside).sum(1, keepdim=True) / count
    variance = ((flat - mean).square() * inside).sum(1, keepdim=True) / (count - 1).clamp_min(1)
    column = (-1, 1, 1, 1, 1)
    scaled: Tensor = (volume - mean.view(column)) / variance.sqrt().clamp_min(1e-6).view(column)
    return torch.where(inside.any(1).view(column), scaled, torch.zeros_like(volume))


def stretched(volume: Tensor, size: Sequence[int]) -> Tensor:
    """(b, c, ...) on another grid, trilinear, areas of the voxels aligned."""
    return functional.interpolate(volume, tuple(size), mode="trilinear", align_corners=False)


def load_med3d(path: Path, shape: Med3dShape | None = None) -> SamMed3d:
    """The model with the weights of an official checkpoint, or of a safetensors file.

    The official files `sam_med3d.pth` and `sam_med3d_turbo.pth` keep the weights under
    `model_state_dict` beside the state of the training; nothing in them is run.

    Args:
        path: The file.
        shape: Sizes of the model; None: the official ones.

    Raises:
        DataError: The file is missing, is no such file, holds code, or its names or shapes are
            not those of the model.
    """
    shape = shape or Med3dShape()
    model = SamMed3d(shape)
    state = read_state(path)
    expected = f"SAM-Med3D, width {shape.width}, {shape.depth} blocks, input {shape.input_size}"
    patch = state.get("image_encoder.patch_embed.proj.weight")
    looks = "another model" if patch is None else f"a ViT with patches {tuple(patch.shape)}"
    put_state(model, state, path, expected=expected, looks_like=looks)
    return model.eval()
