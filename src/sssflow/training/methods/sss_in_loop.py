"""SSS, in-loop: PCSW, SAM-2's prompted masks and DFE inside the step; the student is SAM-2.

Source: SSS (arXiv 2506.08949); UniMatch V2 (arXiv 2410.10777) for the stream; Medical-SAM2
(arXiv 2408.00874) for the memory bank. The switches are in `in_loop_config`.

Letters: c clips, t slices of a clip, h rows, w columns.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sssflow.networks.base import SegmentationNet
from sssflow.training import in_loop
from sssflow.training.clips import ClipPlan, as_clips, as_slices, labelled_clips
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch
from sssflow.training.dfe import Dfe
from sssflow.training.ema import make_teacher
from sssflow.training.methods.base import LossTerms, Method
from sssflow.training.methods.streams import (
    PseudoLabel,
    StrongView,
    WeakView,
    make_strong,
    split_levels,
    statistics_kept,
    unlabelled_of,
)
from sssflow.training.ramps import rising
from sssflow.training.views import weak_geometry


class SssInLoop(Method):
    """L = (L_x + w(t) L_u) / 2; L_x of both heads on labelled clips, L_u of strong views."""

    name = "sss_in_loop"
    dimensions = frozenset({2})
    kept_apart = frozenset({"banks"})

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        super().__init__(student, config)
        settings = config.sss_in_loop
        self.net = in_loop.require_sam2(student, config)
        self.ema_decay, self.ema_lag = settings.ema_decay, settings.ema_lag
        self.clips = ClipPlan(
            settings.clip_slices, settings.clips_labelled, settings.clips_unlabelled
        )
        self.target_net = self.net
        if settings.teacher == "ema":
            self.target_net = make_teacher(self.net)
            self.modules["teacher"] = self.target_net
        self.banks = self.net.class_banks(
            capacity=settings.bank_capacity,
            iou_slack=settings.bank_iou_slack,
            min_iou=settings.bank_min_iou,
        )
        self.modules["banks"] = self.banks
        if settings.feature_perturbation in ("dfe", "both"):
            self.modules["dfe"] = Dfe(
                student.feature_channels,
                settings.dfe_levels,
                settings.dfe_width,
                residual=settings.dfe_residual,
            )

    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """See `Method.step`."""
        settings, augmentation = self.config.sss_in_loop, self.config.augmentation
        if step % settings.bank_clear_every == 0:
            self.banks.clear()
        labelled = self._labelled(batch, generator)

        scan = as_clips(unlabelled_of(batch).image_bchw, settings.clip_slices)
        geometry = weak_geometry((len(scan), *scan.shape[2:]), augmentation.weak, generator)
        weak = WeakView(geometry.image(scan), None, None)
        with statistics_kept(self.target_net):
            target = in_loop.make_targets(
                self.target_net, scan, weak.image_bchw, geometry, settings, self.banks, generator
            )
        pseudo = PseudoLabel(target.label_cthw, target.confident_cthw)
        views = [make_strong(weak, pseudo, augmentation, generator) for _ in range(2)]
        weight = 0.5 * settings.unlabelled_weight
        weight *= rising(step, round(settings.ramp_share * self.config.steps))
        strong = self._strong(target, views, generator)
        terms = {name: 0.5 * loss for name, loss in labelled.items()}
        terms |= {name: weight * loss for name, loss in strong.items()}
        middle = settings.clip_slices // 2
        prompted = torch.tensor(float(sum(map(len, target.prompts))))
        return LossTerms(
            terms,
            {"confident_share": target.confident_cthw.float().mean(), "prompted": prompted},
            {
                "image": weak.image_bchw[:, middle],
                "coarse": target.coarse_cthw[:, middle],
                "pseudo_label": target.label_cthw[:, middle],
            },
        )

    def _labelled(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        settings, net = self.config.sss_in_loop, self.net
        image, label = labelled_clips(
            batch.labelled, settings.clip_slices, self.config.augmentation, generator
        )
        everywhere = torch.ones_like(label, dtype=torch.bool)
        features = net.features(as_slices(image))
        flat = (label.flatten(0, 1), everywhere.flatten(0, 1))
        terms = {"coarse": in_loop.clip_loss(net.head(features), *flat, settings.labelled_loss)}
        prompts = in_loop.true_prompts(label, net.class_count, settings, generator)
        masks = in_loop.prompted_masks(
            net, features, image, prompts, settings, self.banks, generator
        )
        for class_index, entry in (e for found in masks if found for e in found.entries):
            self.banks.offer(class_index, entry)
        prompted = in_loop.decoder_loss(
            masks, label, everywhere, net.class_count, settings.labelled_loss
        )
        terms["prompted"] = settings.prompted_weight * prompted
        terms["scores"] = settings.scores_weight * in_loop.scores_loss(masks, label)
        return terms

    def _strong(
        self, target: in_loop.Targets, views: list[StrongView], generator: Generator
    ) -> dict[str, Tensor]:
        settings, net = self.config.sss_in_loop, self.net
        images = torch.cat([as_slices(v.image_bchw) for v in views])
        sizes = [len(images) // 2] * 2
        with statistics_kept(net):
            with torch.set_grad_enabled(settings.unlabelled_encoder_grad):
                features = net.features(images)
            pair = in_loop.perturbed(
                self.modules["dfe"] if "dfe" in self.modules else None,
                target.features,
                split_levels(features, sizes),
                views,
                self.config,
                generator,
            )
            with in_loop.parameters_fixed(
                net.coarse, fixed=settings.coarse_head_unlabelled == "detached"
            ):
                logits = torch.split(
                    net.head([torch.cat(level) for level in zip(*pair, strict=True)]), sizes
                )
        return in_loop.strong_losses(
            net, logits, pair, views, target, settings, self.banks, generator
        )
