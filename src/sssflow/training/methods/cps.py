"""CPS, cross pseudo supervision (Chen et al., CVPR 2021; arXiv 2106.01226) as in SSL4MIS."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sssflow.networks.base import SegmentationNet
from sssflow.networks.registry import build_network
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch, derive_seed
from sssflow.training.losses import pseudo_label_loss, supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view
from sssflow.training.methods.streams import unlabelled_of, weak_view
from sssflow.training.ramps import rising


class Cps(Method):
    """L = sum over both nets of L_x + w(t) CE(p_u, arg-max of the other net's p_u).

    Two nets of one form and different first weights see the same images; labels carry no gradient.
    The student is the first; a training that starts from a model starts the student alone there,
    since two equal nets would teach each other nothing.
    """

    name = "cps"

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        seed = derive_seed(config.seed, "second")
        self.second = build_network(config.network, student.class_count, seed=seed)
        self.modules["second"] = self.second

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings, augmentation = self.config.cps, self.config.augmentation
        image, label = labelled_view(batch.labelled, augmentation, generator)
        weak = weak_view(unlabelled_of(batch), augmentation.weak, generator)
        weight = settings.cross_weight * rising(
            step, round(settings.ramp_share * self.config.steps)
        )
        logits_u = [net(weak.image_bchw) for net in (self.student, self.second)]
        logits_x = [net(image) for net in (self.student, self.second)]
        labels_u = [logits.detach().argmax(1) for logits in logits_u]
        return LossTerms(
            {
                "labelled": supervised_loss(logits_x[0], label),
                "cross": weight * _cross_entropy(logits_u[0], labels_u[1]),
            },
            facts={"agreement": (labels_u[0] == labels_u[1]).float().mean()},
            preview={
                "image": weak.image_bchw[:, 0],
                "second": labels_u[1],
                "prediction": labels_u[0],
            },
            beside={
                "second_labelled": supervised_loss(logits_x[1], label),
                "second_cross": weight * _cross_entropy(logits_u[1], labels_u[0]),
            },
        )


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Over every pixel: CPS has no threshold."""
    every = torch.ones_like(label, dtype=torch.bool)
    return pseudo_label_loss(logits, label, every, kind="ce")
