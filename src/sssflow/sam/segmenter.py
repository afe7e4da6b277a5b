"""SAM-2 as a student: one image encoder, a coarse head, and the prompted decoder with its memory.

As a network it is `features` (the three FPN maps at strides 4, 8 and 16, before the decoder's
`conv_s0` and `conv_s1`) and `head` (the coarse head D_sam of SSS, arXiv 2506.08949): that is what
is measured, saved and exported. In-loop training also asks it for prompted masks of a clip.

Letters: b slices, t slices of a clip, c channels, k classes, h rows, w columns of the input,
y rows, x columns of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Generator, Tensor, nn
from torch.nn import functional

from sssflow.contracts.base import Sha256
from sssflow.contracts.prompts import ObjectPrompts
from sssflow.errors import DataError
from sssflow.networks.base import SegmentationNet
from sssflow.networks.config import NetworkConfig, Sam2StudentConfig
from sssflow.sam.build import MASK_STRIDE, build_sam2, set_input_size
from sssflow.sam.clip_masks import ClipMasks, MemoryKind, MemorySettings, segment_clip
from sssflow.sam.heads import IMAGE_MEAN, IMAGE_STD, FeatureMaps
from sssflow.sam.memory_bank import BankRules, ClassBanks
from sssflow.sam.weights_io import load_weights, weights_path
from sssflow.storage.digest import sha256_file

__all__ = ["ClassBanks", "ClipMasks", "Sam2Segmenter"]  # all that the training room may use

_WEIGHTS_KEY = "train.network.sam2.weights (or of warmup, baseline)"


class CoarseHead(nn.Module):
    """D_sam: Conv3x3, batch norm, ReLU, Conv1x1 on the finest map, resized to the input.

    `pyramid` first projects the two coarser maps and adds them: SAM-2's fine maps have no
    top-down path, so the finest alone knows edges but no organs.
    """

    def __init__(self, channels: int, width: int, class_count: int, *, pyramid: bool) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels, channels, 1) for _ in range(2 if pyramid else 0)
        )
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, class_count, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (b, k, h, w) from maps at strides 4, 8, 16."""
        fine = maps[0]
        x = fine
        for lateral, coarse in zip(self.lateral, maps[1:], strict=False):
            x = x + functional.interpolate(
                lateral(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=False
            )
        logits: Tensor = functional.interpolate(
            self.body(x), scale_factor=MASK_STRIDE, mode="bilinear", align_corners=False
        )
        return logits


class Sam2Segmenter(SegmentationNet):
    """SAM-2 behind the networks' interface; grey slices with values about 0 to 1.

    Sides must be multiples of 32; prompted masks need a square input.
    """

    def __init__(self, class_count: int, config: Sam2StudentConfig) -> None:
        super().__init__()
        self.class_count = class_count
        self.stride = 32
        self.free_size = False
        self.hints = config.size == "nano"
        self.sam = build_sam2(config.size, version=config.version)
        channels = int(self.sam.hidden_dim)
        self.feature_channels = (channels,) * 3
        self.coarse = CoarseHead(
            channels, config.coarse_width, class_count, pyramid=config.coarse_head == "pyramid"
        )

    def features(self, image_bchw: Tensor) -> list[Tensor]:
        """Three maps of equal channels at strides 4, 8, 16."""
        mean = image_bchw.new_tensor(IMAGE_MEAN).view(1, 3, 1, 1)
        std = image_bchw.new_tensor(IMAGE_STD).view(1, 3, 1, 1)
        out = self.sam.image_encoder((image_bchw - mean) / std)
        return list(out["backbone_fpn"])

    def head(self, features: list[Tensor]) -> Tensor:
        """Coarse logits (b, k, h, w)."""
        logits: Tensor = self.coarse(features)
        return logits

    @staticmethod
    def class_banks(*, capacity: int, iou_slack: float, min_iou: float) -> ClassBanks:
        """Empty self-sorting banks, one per class; see `sam.memory_bank`."""
        return ClassBanks(BankRules(capacity, iou_slack, min_iou))

    def clip_masks(
        self,
        features: Sequence[Tensor],
        image_t1hw: Tensor,
        objects: Sequence[ObjectPrompts],
        *,
        memory: MemoryKind,
        draws: int,
        banks: ClassBanks | None,
        generator: Generator,
    ) -> ClipMasks:
        """Prompted masks of one clip; gradients reach encoder, prompt encoder, decoder and memory.

        Args:
            features: The clip's maps from `features`, changed or not.
            image_t1hw: The clip itself, square, for the hints that nano reads.
            objects: One or more, prompts in pixels of the input.
            memory: How slices without a prompt are reached.
            draws: Memories beside that of the nearest prompted slice.
            banks: Banks to draw from.
            generator: Of the draws.
        """
        set_input_size(self.sam, int(image_t1hw.shape[-1]))
        decoder = self.sam.sam_mask_decoder
        maps = FeatureMaps(
            decoder.conv_s0(features[0]),
            decoder.conv_s1(features[1]),
            features[2],
            self.sam.image_encoder.neck.position_encoding(features[2]).to(features[2].dtype),
        )
        grey = functional.avg_pool2d(image_t1hw.detach().float(), MASK_STRIDE)[:, 0]
        return segment_clip(
            self.sam,
            maps,
            grey.clamp(0, 1).cpu().numpy(),
            objects,
            MemorySettings(memory, draws, self.hints),
            banks=banks,
            generator=generator,
        )


def build_student(class_count: int, config: NetworkConfig) -> Sam2Segmenter:
    """SAM-2 with random weights, as `networks.registry` asks for it."""
    return Sam2Segmenter(class_count, config.sam2)


def load_start_weights(student: SegmentationNet, config: Sam2StudentConfig) -> None:
    """Put the weights that training starts from into the student; `random`: nothing.

    Raises:
        DataError: The file is missing or does not fit.
        UsageError: `packaged` for an official size.
    """
    path = _start_weights(config)
    if path is not None and isinstance(student, Sam2Segmenter):
        load_weights(student.sam, path)


def start_weights_digest(config: Sam2StudentConfig) -> Sha256 | None:
    """Digest of the weights that training starts from; None: random.

    Raises:
        DataError: The file is missing.
        UsageError: `packaged` for an official size.
    """
    path = _start_weights(config)
    if path is None:
        return None
    if not path.is_file():
        raise DataError(
            "The SAM-2 weights are missing.",
            where=path,
            action=f"Check the path {_WEIGHTS_KEY}.",
        )
    return sha256_file(path)


def _start_weights(config: Sam2StudentConfig) -> Path | None:
    if config.weights == "random":
        return None
    given = None if config.weights == "packaged" else config.weights
    return weights_path(config.size, given, where=_WEIGHTS_KEY)
