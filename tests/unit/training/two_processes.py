"""One of two processes of a training, for test_training_distributed.py: DATASET OUT PORT RANK."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file

from sssflow.contracts.dataset import Case, DatasetManifest, LabelledCase, Role
from sssflow.contracts.model import Preprocessing
from sssflow.networks.config import NetworkConfig
from sssflow.networks.registry import build_network
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.config import TrainConfig
from sssflow.training.distributed import World, joined
from sssflow.training.loop import train_step
from sssflow.training.methods import registry
from sssflow.training.methods.base import LossTerms, Method
from sssflow.training.validate import load_validation, validate

STILL = {
    "weak": {"flip_probability": 0, "rot90_probability": 0, "affine_probability": 0,
             "elastic_probability": 0},
    "labelled_strong_probability": 0,
}  # fmt: skip
"""No random views: each process draws its own."""

PLAIN = {
    "network": {"base_channels": 4, "levels": 3},
    "preprocessing": {"size_hw": [32, 32]},
    "augmentation": STILL,
    "optimiser": {"kind": "sgd", "learning_rate": 0.05, "clip_norm": 1.0, "warmup_steps": 0},
    "seed": 2,  # with seed 1 an activation lies at the kink of its ReLU, where rounding decides
    "steps": 4,
    "batch_labelled": 4,
    "device": "cpu",
    "threads": 1,
    "precision": "float32",
}

IN_LOOP = {
    "method": "sss_in_loop",
    "processes": 2,
    "preprocessing": {"size_hw": [32, 32]},
    "network": {"name": "sam2", "sam2": {"weights": "random", "coarse_width": 8}},
    "steps": 2,
    "eval_every": 2,
    "checkpoint_every_steps": 1,
    "sss_in_loop": {
        "clip_slices": 3,
        "clips_labelled": 2,
        "clips_unlabelled": 2,
        "dfe_width": 8,
        "confidence_threshold": 0.0,
        "memory_draws": 1,
        "unlabelled_weight": 1.0,
        "ramp_share": 0.0,
    },
    "device": "cpu",
    "threads": 1,
    "precision": "float32",
}


class PixelwiseLoss(Method):
    """Mean cross-entropy, without batch norm's statistics and dropout.

    Unlike Dice's, its mean over parts is that over the whole batch.
    """

    name = "pixelwise"
    needs_unlabelled = False

    def train_mode(self):
        """See `Method.train_mode`."""
        self.modules.eval()

    def step(self, batch, step, generator):
        """See `Method.step`."""
        logits = self.student(batch.labelled.image_bchw)
        return LossTerms({"labelled": F.cross_entropy(logits, batch.labelled.label_bhw.long())})


def train_plainly(dataset: Path, world: World) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of the method that does not depend on how a batch is cut."""
    config = TrainConfig.model_validate({**PLAIN, "processes": world.size})
    config = config.model_copy(update={"method": "pixelwise"})
    manifest = load_contract(DatasetManifest, dataset)
    # Other tests of the same process ask every method of the registry.
    with patch.dict(registry.METHODS, pixelwise=PixelwiseLoss):
        run = stage.prepare(config, manifest, dataset.parent, dataset.parent, world=world)
    run.method.train_mode()
    losses = [train_step(run, step)[1] for step in range(config.steps)]
    return losses, {k: v.contiguous() for k, v in run.method.student.state_dict().items()}


def exchange(world: World) -> dict[str, object]:
    """What every call of the world gives, here with values that depend on the process."""
    first, second, unused = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    first.grad = torch.full((3,), 1.0 + world.rank)
    if world.rank == 1:
        second.grad = torch.full((3,), 8.0)
    world.average_gradients([first, second, unused])
    norm, still = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2).eval()
    for module in (norm, still):
        module.running_mean.fill_(float(world.rank))
    world.average_statistics(torch.nn.ModuleList([norm, still]))
    return {
        "part": world.part(torch.arange(6)).tolist(),
        "mean": world.mean(2.0 + world.rank),
        "nan": str(world.mean(float("nan") if world.rank else 1.0)),
        "any": world.any(world.rank == 1, False, world.rank == 0),
        "first": first.grad.tolist(),
        "second": second.grad.tolist(),
        "unused": unused.grad is None,
        "running_mean": norm.running_mean.tolist(),
        "running_mean_of_a_teacher": still.running_mean.tolist(),
        "share": world.share({"x": torch.tensor([5])} if world.is_first else None)["x"].tolist(),
        "gather": [s["x"].tolist() for s in world.gather({"x": torch.arange(world.rank + 1)})],
    }


def validate_shared(
    dataset: Path, world: World, stops: int | None = None
) -> tuple[list[str], dict[str, float] | None]:
    """This process's cases of all that have a label, and what it is told of the figures of all.

    Process `stops` is told to stop at once.
    """
    manifest = load_contract(DatasetManifest, dataset)
    every = tuple(LabelledCase(**told_of(case)) for case in manifest.cases if has_label(case))
    changed = manifest.model_copy(update={"cases": every})
    prep = Preprocessing(size_hw=(32, 32))
    cases = load_validation(changed, dataset.parent, prep, memory_gib=1, world=world)
    net = build_network(NetworkConfig(base_channels=4, levels=3), manifest.class_count, seed=1)
    figures = validate(
        net,
        cases,
        prep,
        manifest.class_names,
        world=world,
        is_stopped=lambda: world.rank == stops,
    )
    return [case.case_id for case in cases], figures


def has_label(case: Case) -> bool:
    """Whether it can be measured on."""
    return case.role is not Role.UNLABELLED


def told_of(case: Case) -> dict[str, object]:
    """Its fields, for validation."""
    return {name: getattr(case, name) for name in type(case).model_fields} | {
        "role": Role.VALIDATION
    }


def train_in_loop_twice(dataset: Path, out: Path, world: World) -> None:
    """Whole into `out/whole`; from its first checkpoint, as if killed after it, in `out/cut`."""
    config = TrainConfig.model_validate(IN_LOOP)
    stage.run(config, dataset, out / "whole", world=world)
    if world.is_first:
        shutil.copytree(out / "whole" / "checkpoints", out / "cut" / "checkpoints")
        shutil.rmtree(out / "cut" / "checkpoints" / "step_00000002")
    world.wait()
    stage.run(config, dataset, out / "cut", world=world)


def main(dataset: Path, out: Path, port: str, rank: int) -> None:
    """All of it, as process `rank` of two."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    world = World(rank=rank, size=2, local_rank=rank, local_size=2, timeout_s=120)
    with joined(world, cuda=False):
        found = exchange(world)
        losses, weights = train_plainly(dataset, world)
        found["validation"] = validate_shared(dataset, world)
        found["stopped_validation"] = [validate_shared(dataset, world, rank)[1] for rank in (0, 1)]
        train_in_loop_twice(dataset, out, world)
    (out / f"{rank}.json").write_text(json.dumps({**found, "losses": losses}))
    save_file(weights, out / f"{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
