"""Supervised training on the labelled slices: the baseline, and the warm-up of the pipeline."""

from __future__ import annotations

from torch import Generator

from sssflow.training.data import Batch
from sssflow.training.losses import supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view


class Supervised(Method):
    """L = (cross-entropy + Dice) / 2 on augmented labelled slices."""

    name = "supervised"
    needs_unlabelled = False

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        image, label = labelled_view(batch.labelled, self.config.augmentation, generator)
        logits = self.student(image)
        return LossTerms(
            {"labelled": supervised_loss(logits, label)},
            preview={"image": image[:, 0], "label": label, "prediction": logits.detach().argmax(1)},
        )
