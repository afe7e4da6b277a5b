"""UniMatch V2: one teacher, two strong views, complementary channel dropout.

Source: UniMatch V2 (arXiv 2410.10777), its loop and values as in research dossier C.1.
"""

from __future__ import annotations

import torch
from torch import Generator

from sssflow.networks.base import SegmentationNet
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch
from sssflow.training.ema import make_teacher
from sssflow.training.losses import pseudo_label_loss, supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view
from sssflow.training.methods.streams import (
    complementary_dropout,
    join_levels,
    make_strong,
    pseudo_label,
    split_levels,
    statistics_kept,
    unlabelled_of,
    weak_view,
)
from sssflow.training.ramps import rising


class UniMatchV2(Method):
    """L = (L_x + w(t) L_u) / 2, L_u the mean over the two strong views, w rising."""

    name = "unimatch_v2"

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        self.ema_decay = config.unimatch_v2.ema_decay
        self.ema_lag = config.unimatch_v2.ema_lag
        self.ema = make_teacher(student)
        self.modules["teacher"] = self.ema

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings, augmentation = self.config.unimatch_v2, self.config.augmentation
        image, label = labelled_view(batch.labelled, augmentation, generator)
        weak = weak_view(unlabelled_of(batch), augmentation.weak, generator)
        with torch.no_grad():
            teacher_logits = self.ema(weak.image_bchw)
        pseudo = pseudo_label(teacher_logits, settings.confidence_threshold)
        views = [make_strong(weak, pseudo, augmentation, generator) for _ in range(2)]

        # Two forward passes, as in the source; only the plain one moves the running statistics.
        with statistics_kept(self.student):
            features = self.student.features(torch.cat([v.image_bchw for v in views]))
            sizes = [len(weak.image_bchw)] * 2
            one, two = split_levels(features, sizes)
            one, two = complementary_dropout(one, two, settings.dropout_share, generator)
            logits_s = torch.split(self.student.head(join_levels([one, two])), sizes)
        logits_x = self.student(image)

        weight = settings.unlabelled_weight * rising(
            step, round(settings.ramp_share * self.config.steps)
        )
        consistency = [
            pseudo_label_loss(part, v.label_bhw, v.confident_bhw, kind=settings.unlabelled_loss)
            for part, v in zip(logits_s, views, strict=True)
        ]
        return LossTerms(
            {
                "labelled": 0.5 * supervised_loss(logits_x, label),
                "unlabelled": 0.5 * weight * torch.stack(consistency).mean(),
            },
            facts={"confident_share": pseudo.confident_bhw.float().mean()},
            preview={
                "image": views[0].image_bchw[:, 0],
                "pseudo_label": views[0].label_bhw,
                "prediction": logits_s[0].detach().argmax(1),
            },
        )
