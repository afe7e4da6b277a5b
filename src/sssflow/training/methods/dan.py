"""DAN, deep adversarial network (Zhang et al., MICCAI 2017) as in SSL4MIS."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.func import functional_call

from sssflow.errors import UsageError
from sssflow.networks.base import SegmentationNet
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch
from sssflow.training.discriminator import LEAST_SIDE, Discriminator, origin_loss
from sssflow.training.losses import supervised_loss
from sssflow.training.methods.base import (
    LossTerms,
    Method,
    SeenUnlabelled,
    labelled_view,
    some_strong,
)
from sssflow.training.methods.streams import unlabelled_of, weak_view
from sssflow.training.ramps import rising


class Dan(Method):
    """L = L_x + w(t) CE(D(p_u, x_u), labelled); D itself learns CE(D(p, x), its true origin).

    The student is to make D take its unlabelled segmentations for labelled ones. D learns from the
    same predictions, detached, with an Adam of its own (SSL4MIS predicts them anew after the
    student's step). Both streams get strong intensities on the same share of samples: were they
    on the labelled ones only, D could tell the streams by the image and would teach nothing.
    """

    name = "dan"
    trained_apart = frozenset({"discriminator"})

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        settings = config.dan
        _require_sides(config)
        self.discriminator = Discriminator(
            student.class_count, student.dimensions, settings.discriminator_width
        )
        self.modules["discriminator"] = self.discriminator
        self.own_optimisers["discriminator"] = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=settings.discriminator_learning_rate,
            betas=(0.9, 0.99),
        )

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings, augmentation = self.config.dan, self.config.augmentation
        image, label = labelled_view(batch.labelled, augmentation, generator)
        weak = weak_view(unlabelled_of(batch), augmentation.weak, generator)
        image_u = some_strong(weak.image_bchw, augmentation, generator)
        logits_u, logits_x = self.student(image_u), self.student(image)
        p_u, p_x = logits_u.float().softmax(1), logits_x.float().softmax(1)

        weight = settings.adversarial_weight * rising(
            step, round(settings.ramp_share * self.config.steps)
        )
        fooled = origin_loss(self._fixed_discriminator(p_u, image_u), [True] * len(p_u))
        judged = self.discriminator(torch.cat([p_x, p_u]).detach(), torch.cat([image, image_u]))
        origin = [True] * len(p_x) + [False] * len(p_u)
        terms = LossTerms(
            {"labelled": supervised_loss(logits_x, label), "adversarial": weight * fooled},
            preview={"image": image_u[:, 0], "prediction": logits_u.detach().argmax(1)},
            beside={"discriminator": origin_loss(judged, origin)},
        )
        return terms | self.plug_in(SeenUnlabelled(weak, logits_u, p_u.detach()), step, generator)

    def _fixed_discriminator(self, probability: Tensor, image: Tensor) -> Tensor:
        """The discriminator without dropout and out of the student's gradient."""
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        self.discriminator.eval()
        logits: Tensor = functional_call(self.discriminator, fixed, (probability, image))
        self.discriminator.train()
        return logits


def _require_sides(config: TrainConfig) -> None:
    """Refuse slices or patches that the critic's four halvings would use up.

    Raises:
        UsageError: A side is too short.
    """
    rule = config.preprocessing
    sides = rule.size_hw if rule.patch is None else rule.patch.size_shw
    if min(sides) < LEAST_SIDE:
        raise UsageError(
            "The critic of dan halves each side four times.",
            where="preprocessing.size_hw" if rule.patch is None else "preprocessing.patch.size_shw",
            expected=f"{LEAST_SIDE} or more on every side",
            found=" x ".join(map(str, sides)),
            action="Choose larger patches, or another method.",
        )
