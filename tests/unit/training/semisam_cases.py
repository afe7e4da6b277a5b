"""What tests of SemiSAM share: a generalist that says what it is told, and a prepared run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator

from sssflow.contracts.dataset import DatasetManifest
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.data import read_batch
from sssflow.training.outside import outside_of

LOOSE = {
    "passes": 2,
    "min_predicted_iou": 0.0,
    "area_ratio": 1e6,
    "points": {"min_pixels": 1, "max_share": 1.0},
    "entropy_share_start": 1.0,
}


class Recorder:
    """A generalist that answers with what it is told and remembers what it was asked."""

    name, digest = "recorder", "d" * 64

    def __init__(self, logits=None, iou=0.9):
        self.logits, self.iou, self.asked = logits, iou, []

    def answer(self, image, regions):
        self.asked.append((image, list(regions)))
        if not regions:
            return image.new_zeros((0, *image.shape[2:])), image.new_zeros(0)
        made = self.logits if self.logits is not None else [r.support * 20.0 - 10 for r in regions]
        answers = [torch.as_tensor(np.asarray(m), dtype=torch.float32) for m in made]
        return torch.stack(answers), torch.full((len(regions),), self.iou)


def prepared(config, tiny, generalist, oracle=None):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    outside = outside_of(config, generalist, oracle)
    folder = tiny.dataset.parent
    run = stage.prepare(config, manifest, folder, folder, outside=outside)
    run.method.train_mode()
    return run


def step(run, number=0):
    sizes = {"labelled": run.config.batch_labelled, "unlabelled": run.config.batch_unlabelled}
    batch = read_batch(run.data, 0, **sizes, seed=run.config.seed)
    torch.manual_seed(0)
    return run.method.step(batch, number, Generator().manual_seed(0))


def by_grey(net, image):
    """Logits read off the grey values that the tiny dataset is drawn with: a net that sees."""
    del net
    centres = torch.tensor([0.1, 0.95, 0.5], device=image.device)
    centres = centres.view(1, 3, *[1] * (image.dim() - 2))
    return -100 * (image - centres).square()
