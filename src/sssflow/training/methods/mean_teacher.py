"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017) as the SSL4MIS baselines use it."""

from __future__ import annotations

import torch
from torch import Generator

from sssflow.networks.base import SegmentationNet
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch
from sssflow.training.ema import make_teacher
from sssflow.training.losses import consistency_loss, supervised_loss
from sssflow.training.methods.base import LossTerms, Method, labelled_view
from sssflow.training.methods.streams import statistics_kept, unlabelled_of, weak_view
from sssflow.training.ramps import rising


class MeanTeacher(Method):
    """L = L_x + w(t) * MSE(softmax student(x_w + noise), softmax teacher(x_w)), w rising."""

    name = "mean_teacher"

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        self.ema_decay = config.mean_teacher.ema_decay
        self.ema_lag = config.mean_teacher.ema_lag
        self.ema = make_teacher(student)
        self.modules["teacher"] = self.ema

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings = self.config.mean_teacher
        image, label = labelled_view(batch.labelled, self.config.augmentation, generator)
        weak = weak_view(unlabelled_of(batch), self.config.augmentation.weak, generator)
        with torch.no_grad():
            target = self.ema(weak.image_bchw).float().softmax(1)
        noise = torch.randn(weak.image_bchw.shape, generator=generator, device=generator.device)
        noisy = weak.image_bchw + (settings.noise_std * noise).clamp(
            -2 * settings.noise_std, 2 * settings.noise_std
        )
        with statistics_kept(self.student):
            logits_u = self.student(noisy)
        logits_x = self.student(image)
        weight = settings.consistency_weight * rising(
            step, round(settings.ramp_share * self.config.steps)
        )
        return LossTerms(
            {
                "labelled": supervised_loss(logits_x, label),
                "consistency": weight * consistency_loss(logits_u, target),
            },
            preview={
                "image": weak.image_bchw[:, 0],
                "teacher": target.argmax(1),
                "prediction": logits_u.detach().argmax(1),
            },
        )
