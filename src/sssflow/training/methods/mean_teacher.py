"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017; arXiv 1703.01780) as in SSL4MIS."""

from __future__ import annotations

import torch
from torch import Generator

from sssflow.networks.base import SegmentationNet
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch
from sssflow.training.ema import make_teacher
from sssflow.training.losses import consistency_loss, supervised_loss
from sssflow.training.method_config import MeanTeacherConfig
from sssflow.training.methods.base import LossTerms, Method, SeenUnlabelled, labelled_view
from sssflow.training.methods.streams import statistics_kept, unlabelled_of, weak_view
from sssflow.training.ramps import rising
from sssflow.training.uncertainty import clipped_noise


class MeanTeacher(Method):
    """L = L_x + w(t) * MSE(softmax student(x_w + noise), softmax teacher(x_w)), w rising.

    With `noise_on: teacher`, as in SSL4MIS and UA-MT, the teacher sees the noise and the student
    x_w. Here the student does by default: the answer to a harder view is learnt from an easier one.
    """

    name = "mean_teacher"

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        self.ema_decay = self.settings.ema_decay
        self.ema_lag = self.settings.ema_lag
        self.ema = make_teacher(student)
        self.modules["teacher"] = self.ema

    @property
    def settings(self) -> MeanTeacherConfig:
        """This method's section."""
        return self.config.mean_teacher

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        image, label = labelled_view(batch.labelled, self.config.augmentation, generator)
        weak = weak_view(unlabelled_of(batch), self.config.augmentation.weak, generator)
        clean = weak.image_bchw
        noisy = clean + clipped_noise(clean, self.settings.noise_std, generator)
        seen_by = (clean, noisy) if self.settings.noise_on == "teacher" else (noisy, clean)
        with torch.no_grad():
            target = self.ema(seen_by[1]).float().softmax(1)
        with statistics_kept(self.student):
            logits_u = self.student(seen_by[0])
        logits_x = self.student(image)
        seen = SeenUnlabelled(weak, logits_u, target)
        labelled = LossTerms(
            {"labelled": supervised_loss(logits_x, label)},
            preview={
                "image": weak.image_bchw[:, 0],
                "teacher": target.argmax(1),
                "prediction": logits_u.detach().argmax(1),
            },
        )
        consistency = self.consistency(seen, step, generator)
        return labelled | consistency | self.plug_in(seen, step, generator)

    def consistency(self, seen: SeenUnlabelled, step: int, generator: Generator) -> LossTerms:
        """The term between student and teacher, its weight applied."""
        loss = consistency_loss(seen.logits_bkhw, seen.target_bkhw)
        return LossTerms({"consistency": self.weight(step) * loss})

    def weight(self, step: int) -> float:
        """w(t)."""
        length = round(self.settings.ramp_share * self.config.steps)
        return self.settings.consistency_weight * rising(step, length)
