"""BCP, bidirectional copy-paste (Bai et al., CVPR 2023; arXiv 2305.00673)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from sssflow.errors import UsageError
from sssflow.networks.base import SegmentationNet
from sssflow.prompts.reliable_points import largest_piece
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch
from sssflow.training.ema import make_teacher
from sssflow.training.losses import IGNORED, supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view
from sssflow.training.methods.streams import batch_statistics, unlabelled_of, weak_view


class Bcp(Method):
    """Images pasted into each other; each side of the seam is supervised by its own label.

    With M zero in a random box of 2/3 of every side and halves a, b of both batches:
    x_in = u_a M + l_a (1 - M), x_out = l_b M + u_b (1 - M); each part has (CE + Dice) / 2 over its
    own pixels, times alpha = 0.5 where the label is the teacher's. The first
    `pretrain_share` of the steps pastes l_a and l_b into each other. The published code stops
    there, keeps the best network on validation and starts again with it; here the run goes on.

    The teacher labels plain images, but its running statistics are averages over pasted ones, by
    which it misses foreground. So it normalises by the batch, as the published one, which stays in
    training mode; that one's dropout is left out. Each step reads half as many labelled pixels as
    the other methods' with the same batch: only pasted images are seen.
    """

    name = "bcp"
    batch_multiple = 2

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        if config.batch_labelled != config.batch_unlabelled or config.batch_labelled % 2:
            raise UsageError(
                "The method bcp pastes half batches into each other.",
                where="batch_labelled, batch_unlabelled",
                expected="equal and even",
                found=f"{config.batch_labelled} and {config.batch_unlabelled}",
            )
        self.ema_decay = config.bcp.ema_decay
        self.ema_lag = config.bcp.ema_lag
        self.ema = make_teacher(student)
        self.modules["teacher"] = self.ema

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        augmentation = self.config.augmentation
        image, label = labelled_view(batch.labelled, augmentation, generator)
        keep = outside_box(image.shape[2:], self.config.bcp.box_share, generator)
        (l_a, l_b), (y_a, y_b) = image.chunk(2), label.chunk(2)
        if step < round(self.config.bcp.pretrain_share * self.config.steps):
            mixed = torch.where(keep, l_a, l_b)
            logits = self.student(mixed)
            loss = region_loss(logits, y_a, keep) + region_loss(logits, y_b, ~keep)
            return LossTerms({"labelled": loss}, preview=_preview(mixed, logits))

        weak = weak_view(unlabelled_of(batch), augmentation.weak, generator)
        u_a, u_b = weak.image_bchw.chunk(2)
        with torch.no_grad(), batch_statistics(self.ema):
            pseudo = self.ema(weak.image_bchw).argmax(1)
        if self.config.bcp.keep_largest:
            pseudo = largest_pieces(pseudo)
        z_a, z_b = pseudo.chunk(2)
        inward, outward = torch.where(keep, u_a, l_a), torch.where(keep, l_b, u_b)
        logits = self.student(torch.cat([inward, outward]))
        logits_in, logits_out = logits.chunk(2)
        return LossTerms(
            {
                "labelled": region_loss(logits_in, y_a, ~keep) + region_loss(logits_out, y_b, keep),
                "unlabelled": self.config.bcp.unlabelled_weight
                * (region_loss(logits_in, z_a, keep) + region_loss(logits_out, z_b, ~keep)),
            },
            facts={"foreground_share": (pseudo > 0).float().mean()},
            preview=_preview(inward, logits_in),
        )


def outside_box(size: Sequence[int], share: float, generator: Generator) -> Tensor:
    """M as booleans of shape `size`: false in one box of `share` of every side, placed at random.

    One box serves the whole batch, as published.
    """
    device = generator.device
    inside = torch.ones((), dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        side = int(length * share)
        first = torch.randint(0, length - side + 1, (), generator=generator, device=device)
        index = torch.arange(length, device=device)
        along = (index >= first) & (index < first + side)
        inside = inside & along.view([-1 if i == axis else 1 for i in range(len(size))])
    return ~inside


def region_loss(logits_bkhw: Tensor, label_bhw: Tensor, region_hw: Tensor) -> Tensor:
    """(cross-entropy + Dice) / 2 over the pixels of one region."""
    return supervised_loss(logits_bkhw, label_bhw.masked_fill(~region_hw, IGNORED))


def largest_pieces(label_bhw: Tensor) -> Tensor:
    """Of every class of every sample the largest component alone; the rest becomes background."""
    kept = np.zeros(label_bhw.shape, np.int64)
    for sample, out in zip(label_bhw.cpu().numpy(), kept, strict=True):
        for value in np.unique(sample[sample > 0]):
            out[largest_piece(sample == value)] = value
    return torch.from_numpy(kept).to(label_bhw.device)


def _preview(image: Tensor, logits: Tensor) -> dict[str, Tensor]:
    return {"image": image[:, 0], "prediction": logits.detach().argmax(1)}
