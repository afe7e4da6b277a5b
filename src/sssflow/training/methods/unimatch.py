"""UniMatch V1 (Yang et al., CVPR 2023; arXiv 2208.09910) in its form for medical images.

Loss kinds and weights are those of the authors' ACDC line, research dossier C.2.
"""

from __future__ import annotations

import torch
from torch import Generator

from sssflow.training.data import Batch
from sssflow.training.losses import pseudo_label_loss, supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view
from sssflow.training.methods.streams import (
    channel_dropout,
    make_strong,
    pseudo_label,
    statistics_kept,
    unlabelled_of,
    weak_view,
)
from sssflow.training.ramps import rising


class UniMatch(Method):
    """L = (L_x + w(t) (0.25 L_s1 + 0.25 L_s2 + 0.5 L_fp)) / 2, Dice over confident pixels.

    s1 and s2 are two strong views with CutMix (partner: the reversed batch; the authors draw a
    second batch); fp is the weak view with half of the channels of every level dropped.
    The student labels its own weak view; there is no teacher.
    """

    name = "unimatch"

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings, augmentation = self.config.unimatch, self.config.augmentation
        image, label = labelled_view(batch.labelled, augmentation, generator)
        weak = weak_view(unlabelled_of(batch), augmentation.weak, generator)
        features = self.student.features(weak.image_bchw)
        with torch.no_grad():
            own_logits = self.student.head(features)
        pseudo = pseudo_label(own_logits, settings.confidence_threshold)
        views = [make_strong(weak, pseudo, augmentation, generator) for _ in range(2)]
        dropped = channel_dropout(features, settings.dropout, generator)
        with statistics_kept(self.student):
            logits_fp = self.student.head(dropped)
            strong = self.student(torch.cat([view.image_bchw for view in views]))
        logits_x = self.student(image)

        logits_s1, logits_s2 = torch.split(strong, len(weak.image_bchw))
        l_s1, l_s2, l_fp = (
            pseudo_label_loss(
                logits, seen.label_bhw, seen.confident_bhw, kind=settings.unlabelled_loss
            )
            for logits, seen in ((logits_s1, views[0]), (logits_s2, views[1]), (logits_fp, pseudo))
        )
        weight = rising(step, round(settings.ramp_share * self.config.steps))
        image_weight, feature_weight = settings.image_weight, settings.feature_weight
        return LossTerms(
            {
                "labelled": 0.5 * supervised_loss(logits_x, label),
                "strong_views": 0.5 * weight * image_weight * 0.5 * (l_s1 + l_s2),
                "features": 0.5 * weight * feature_weight * l_fp,
            },
            facts={"confident_share": pseudo.confident_bhw.float().mean()},
            preview={
                "image": views[0].image_bchw[:, 0],
                "pseudo_label": views[0].label_bhw,
                "prediction": logits_s1.detach().argmax(1),
            },
        )
