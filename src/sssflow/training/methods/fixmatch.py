"""FixMatch (Sohn et al., NeurIPS 2020; arXiv 2001.07685) for segmentation."""

from __future__ import annotations

import torch
from torch import Generator

from sssflow.training.data import Batch
from sssflow.training.losses import pseudo_label_loss, supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view
from sssflow.training.methods.streams import (
    make_strong,
    pseudo_label,
    statistics_kept,
    unlabelled_of,
    weak_view,
)
from sssflow.training.ramps import rising


class FixMatch(Method):
    """L = L_x + w(t) L_u: the student's own confident arg-max on the weak view labels the strong.

    The paper's rule pixel by pixel: one counts where max p(x_w) reaches the threshold, and the
    cross-entropy is divided by all pixels. There is no teacher. The strong view takes CutMix as the
    segmentation form in UniMatch's papers does; `augmentation.cutmix.probability` 0 is without.
    """

    name = "fixmatch"

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings, augmentation = self.config.fixmatch, self.config.augmentation
        image, label = labelled_view(batch.labelled, augmentation, generator)
        weak = weak_view(unlabelled_of(batch), augmentation.weak, generator)
        with torch.no_grad():
            own_logits = self.student(weak.image_bchw)
        pseudo = pseudo_label(own_logits, settings.confidence_threshold)
        view = make_strong(weak, pseudo, augmentation, generator)
        with statistics_kept(self.student):
            logits_s = self.student(view.image_bchw)
        logits_x = self.student(image)

        weight = settings.unlabelled_weight * rising(
            step, round(settings.ramp_share * self.config.steps)
        )
        unlabelled = pseudo_label_loss(
            logits_s, view.label_bhw, view.confident_bhw, kind=settings.unlabelled_loss
        )
        return LossTerms(
            {"labelled": supervised_loss(logits_x, label), "unlabelled": weight * unlabelled},
            facts={"confident_share": pseudo.confident_bhw.float().mean()},
            preview={
                "image": view.image_bchw[:, 0],
                "pseudo_label": view.label_bhw,
                "prediction": logits_s.detach().argmax(1),
            },
        )
