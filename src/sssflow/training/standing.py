"""What a training works on, where it stands, and how that is kept and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sssflow.training.checkpoint import CheckpointManifest, State, save_checkpoint
from sssflow.training.config import TrainConfig
from sssflow.training.data import TrainingData
from sssflow.training.distributed import ALONE, World
from sssflow.training.finite import require_finite_weights
from sssflow.training.methods.base import Method

Weights = dict[str, Tensor]


@dataclass
class Standing:
    """Everything that changes during a run besides weights and optimiser.

    `best_dice` is -1 before the first validation; `elapsed_s` counts earlier sessions too.
    """

    step: int = 0
    best_step: int = 0
    best_dice: float = -1.0
    best_weights: Weights = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """What the loop works on; `manifest` is the template of every checkpoint's manifest."""

    config: TrainConfig
    method: Method
    optimiser: torch.optim.Optimizer
    data: TrainingData
    class_names: tuple[str, ...]
    checkpoints: Path
    manifest: CheckpointManifest
    device: torch.device
    world: World = ALONE
    compiled: AbstractContextManager[None] = field(default_factory=nullcontext)


def copied(state: Mapping[str, Tensor]) -> Weights:
    """A copy on the CPU that later steps do not change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def keep(run: Run, standing: Standing) -> None:
    """Publish the state after `standing.step` steps; every process must come here.

    Raises:
        DataError: A weight is not finite.
    """
    require_finite_weights(run.method.modules, standing.step)
    kept_apart = _gather_kept_apart(run)
    if run.world.is_first:
        manifest = run.manifest.model_copy(update={"step": standing.step})
        state = _state(run, standing, kept_apart)
        save_checkpoint(run.checkpoints, state, manifest, keep_last=run.config.keep_last)


def _gather_kept_apart(run: Run) -> list[dict[str, State]]:
    names = sorted(run.method.kept_apart)
    if run.world.size == 1 or not names:
        return []  # "modules" has it all
    return run.world.gather({name: run.method.modules[name].state_dict() for name in names})


def _state(run: Run, standing: Standing, kept_apart: list[dict[str, State]]) -> State:
    return {
        "kept_apart": kept_apart,
        "modules": run.method.modules.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "own_optimisers": {
            name: optimiser.state_dict() for name, optimiser in run.method.own_optimisers.items()
        },
        "best_weights": standing.best_weights,
        "best_step": standing.best_step,
        "best_dice": standing.best_dice,
        "history": standing.history,
        "elapsed_s": standing.elapsed_s,
    }


def begin(run: Run, found: tuple[CheckpointManifest, State] | None) -> Standing:
    """Where the run stands: at its start, or after the checkpoint `found`.

    All processes take over the first one's weights, optimisers and step; only the first looks for
    a checkpoint, and only its standing knows the best weights and the history.
    """
    standing = Standing() if found is None else restore(run, *found)
    if run.world.size == 1:
        return standing
    sent = None
    if run.world.is_first:
        state = _state(run, standing, [] if found is None else found[1]["kept_apart"])
        sent = {**state, "best_weights": {}, "history": [], "step": standing.step}
    told = run.world.share(sent)
    if run.world.is_first:
        return standing
    return restore(run, run.manifest.model_copy(update={"step": told["step"]}), told)


def restore(run: Run, manifest: CheckpointManifest, state: State) -> Standing:
    """Put a checkpoint's weights and optimiser into `run` and return its standing."""
    run.method.modules.load_state_dict(state["modules"], strict=True)
    if state["kept_apart"]:
        for name, own in state["kept_apart"][run.world.rank].items():
            run.method.modules[name].load_state_dict(own, strict=True)
    run.optimiser.load_state_dict(state["optimiser"])
    for name, optimiser in run.method.own_optimisers.items():
        optimiser.load_state_dict(state["own_optimisers"][name])
    return Standing(
        step=manifest.step,
        best_step=state["best_step"],
        best_dice=state["best_dice"],
        best_weights=state["best_weights"],
        history=state["history"],
        elapsed_s=state["elapsed_s"],
    )
