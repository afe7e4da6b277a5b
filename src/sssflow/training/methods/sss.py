"""SSS, staged: UniMatch V2 with DFE for feature perturbation and SAM-2's masks as a second target.

Source: SSS (arXiv 2506.08949) for DFE and the weak-to-strong stream; SemiSAM (arXiv 2312.06316)
for the falling weight of the generalist's masks, which were made before this run (MaskSet).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sssflow.networks.base import SegmentationNet
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch
from sssflow.training.dfe import Dfe
from sssflow.training.ema import make_teacher
from sssflow.training.losses import mask_loss, pseudo_label_loss, supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view
from sssflow.training.methods.streams import (
    StrongView,
    complementary_dropout,
    join_levels,
    make_strong,
    pseudo_label,
    split_levels,
    statistics_kept,
    unlabelled_of,
    weak_view,
)
from sssflow.training.ramps import mask_weight, rising
from sssflow.training.views import paste


class Sss(Method):
    """L = (L_x + w(t) L_u) / 2 + v(t) L_sam; unlabelled terms are means over two strong views."""

    name = "sss"
    dimensions = frozenset({2})

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        self.ema_decay = config.unimatch_v2.ema_decay
        self.ema_lag = config.unimatch_v2.ema_lag
        self.needs_masks = config.sss.mask_weight > 0
        self.ema = make_teacher(student)
        self.modules["teacher"] = self.ema
        if config.sss.feature_perturbation in ("dfe", "both"):
            self.modules["dfe"] = Dfe(
                student.feature_channels, config.sss.dfe_levels, config.sss.dfe_width
            )

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings, augmentation = self.config.unimatch_v2, self.config.augmentation
        image, label = labelled_view(batch.labelled, augmentation, generator)
        weak = weak_view(unlabelled_of(batch), augmentation.weak, generator)
        with torch.no_grad():
            weak_features = self.ema.features(weak.image_bchw)
            # The pseudo label comes from plain weak features; DFE never touches it.
            teacher_logits = self.ema.head(weak_features)
        pseudo = pseudo_label(teacher_logits, settings.confidence_threshold)
        views = [make_strong(weak, pseudo, augmentation, generator) for _ in range(2)]

        with statistics_kept(self.student):
            features = self.student.features(torch.cat([v.image_bchw for v in views]))
            sizes = [len(weak.image_bchw)] * 2
            one, two = split_levels(features, sizes)
            one, two = self._perturb(weak_features, [one, two], views, generator)
            logits_s = torch.split(self.student.head(join_levels([one, two])), sizes)
        logits_x = self.student(image)

        weight = settings.unlabelled_weight * rising(
            step, round(settings.ramp_share * self.config.steps)
        )
        consistency = [
            pseudo_label_loss(part, v.label_bhw, v.confident_bhw, kind=settings.unlabelled_loss)
            for part, v in zip(logits_s, views, strict=True)
        ]
        terms = {
            "labelled": 0.5 * supervised_loss(logits_x, label),
            "unlabelled": 0.5 * weight * torch.stack(consistency).mean(),
        }
        preview = {
            "image": views[0].image_bchw[:, 0],
            "pseudo_label": views[0].label_bhw,
            "prediction": logits_s[0].detach().argmax(1),
        }
        sam = self._mask_term(logits_s, views, step)
        if sam is not None and views[0].mask_bfhw is not None:
            terms["sam_masks"] = sam
            preview["sam_mask"] = _hard(views[0].mask_bfhw)
        return LossTerms(terms, {"confident_share": pseudo.confident_bhw.float().mean()}, preview)

    def _perturb(
        self,
        weak: list[Tensor],
        pair: list[list[Tensor]],
        views: list[StrongView],
        generator: Generator,
    ) -> tuple[list[Tensor], list[Tensor]]:
        one, two = pair
        if "dfe" in self.modules:
            # The weak features take the strong view's CutMix, so that both show the same pixels.
            one, two = (
                self.modules["dfe"]([paste(f, view.boxes_bhw) for f in weak], strong)
                for strong, view in zip(pair, views, strict=True)
            )
        if self.config.sss.feature_perturbation in ("comp_dropout", "both"):
            share = self.config.unimatch_v2.dropout_share
            one, two = complementary_dropout(one, two, share, generator)
        return one, two

    def _mask_term(
        self, logits_s: Sequence[Tensor], views: list[StrongView], step: int
    ) -> Tensor | None:
        settings = self.config.sss
        if settings.mask_weight == 0:
            return None
        losses = [
            mask_loss(logits, v.mask_bfhw, v.mask_weight_bfhw, kind=settings.mask_loss)
            for logits, v in zip(logits_s, views, strict=True)
            if v.mask_bfhw is not None and v.mask_weight_bfhw is not None
        ]
        if not losses:
            return None
        weight = settings.mask_weight * mask_weight(settings.mask_schedule, step, self.config.steps)
        return weight * torch.stack(losses).mean()


def _hard(mask_bfhw: Tensor) -> Tensor:
    """Labels for a picture: the strongest class where it beats the background."""
    best, index = mask_bfhw.max(1)
    return torch.where(best > 1 - mask_bfhw.sum(1), index + 1, torch.zeros_like(index))
