"""The training loop: plain, resumable, stopped by the first loss that is not finite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from sssflow.errors import DataError, InterruptedRun
from sssflow.networks.base import SegmentationNet
from sssflow.training.clips import read_clips
from sssflow.training.config import OptimiserConfig, TrainConfig
from sssflow.training.data import Batch, derive_seed, read_batch
from sssflow.training.finite import require_finite_loss, require_finite_weights
from sssflow.training.interrupt import StopRequest
from sssflow.training.methods.base import LossTerms, Method
from sssflow.training.ramps import learning_rate_factor
from sssflow.training.standing import Run, Standing, copied, keep
from sssflow.training.tracking import Tracker
from sssflow.training.validate import validate

_LOG = logging.getLogger(__name__)
_LOG_EVERY_S = 60.0
_SCALARS_EVERY = 20
_BFLOAT16_SINCE = 8
"""Compute capability, as in torch's `is_bf16_supported(including_emulation=False)`."""


@dataclass(frozen=True)
class Progress:
    """Told to the caller after every step."""

    step: int
    steps: int
    loss: float
    seconds_left: float
    best_dice: float | None


ProgressCallback = Callable[[Progress], None]


def build_optimiser(method: Method, config: OptimiserConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the method's trainable parameters."""
    parameters = list(method.trainable())
    if config.kind == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def train(
    run: Run, standing: Standing, tracker: Tracker | None, progress: ProgressCallback | None = None
) -> None:
    """Train from `standing.step` to the last step; `standing` is brought up to date in place.

    Of several processes all validate, and only the first has a tracker and writes checkpoints.

    Raises:
        DataError: The loss, or a weight that is to be kept, is not finite.
        InterruptedRun: SIGINT or SIGTERM came, to any process; the checkpoint of the finished
            step is written.
        UnavailableError: Another process ended, or gave no answer in time.
    """
    clock, begun = _Clock(standing), standing.step
    run.method.train_mode()
    with StopRequest() as stop:
        # Where a stop cut a validation short, no later step has seen what it would have chosen.
        _validate_where_owed(run, standing, tracker, stop)
        clock.count(standing)
        stopped, _ = run.world.any(_is_asked_to_stop(run, stop), False)
        while standing.step < run.config.steps and not stopped:
            terms, loss = train_step(run, standing.step)
            standing.step += 1
            _after_step(run, standing, tracker, terms, loss, stop)
            due = clock.tick(run, standing, loss, progress)
            stopped, due = run.world.any(_is_asked_to_stop(run, stop), due)
            if due and not stopped:
                keep(run, standing)
                clock.kept()
        if stopped:
            _keep_new(run, standing, begun)
            run.world.wait()
            by = stop.received or "a signal to another process"
            raise InterruptedRun(
                f"Training was stopped by {by} after step {standing.step}.",
                where=run.checkpoints,
                action="Run the same command again; it goes on from this step.",
            )
    _keep_new(run, standing, begun)


def _keep_new(run: Run, standing: Standing, begun: int) -> None:
    if standing.step > begun:
        keep(run, standing)
    else:  # the checkpoint is there, the run began from it
        require_finite_weights(run.method.modules, standing.step)


def _is_asked_to_stop(run: Run, stop: StopRequest) -> bool:
    return stop.received is not None or run.world.is_orphan


def train_step(run: Run, step: int, batch: Batch | None = None) -> tuple[LossTerms, float]:
    """One optimiser step; every random number follows from (seed, step, process).

    The loss that is returned is the mean over all processes; the terms are this one's.

    `batch` replaces the one that the data would give (for measuring the loader).
    """
    config = run.config
    if batch is None:
        batch = batch_of(run, step)
    names = run.world.seed_names
    generator = Generator(device=run.device)
    generator.manual_seed(derive_seed(config.seed, "views", step, *names))
    # Dropout layers draw from torch's global generator; set from the step, it needs no saving.
    torch.manual_seed(derive_seed(config.seed, "dropout", step, *names))
    factor = learning_rate_factor(
        config.optimiser.schedule,
        step,
        config.steps,
        power=config.optimiser.poly_power,
        drop_every=config.optimiser.drop_every,
        warmup_steps=config.optimiser.warmup_steps,
        floor=config.optimiser.floor,
    )
    for group in run.optimiser.param_groups:
        group["lr"] = config.optimiser.learning_rate * factor
    half = uses_bfloat16(config, run.device)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=half), run.compiled:
        terms = run.method.step(batch, step, generator)
    total = terms.total
    own_loss = float(total.detach())
    loss = run.world.mean(own_loss)
    require_finite_loss(run.method.modules, terms, own_loss, step, batch)
    if not math.isfinite(loss):
        raise DataError("The loss of another process is not finite; see its message.")
    optimisers = [run.optimiser, *run.method.own_optimisers.values()]
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    run.world.average_gradients(p for p in run.method.modules.parameters() if p.requires_grad)
    if config.optimiser.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(run.method.trainable(), config.optimiser.clip_norm)
    for optimiser in optimisers:
        optimiser.step()
    run.world.average_statistics(run.method.modules)
    run.method.after_update(step)
    return terms, loss


def batch_of(run: Run, step: int) -> Batch:
    """This process's part of what is read at `step`: clips, or single slices and patches."""
    config = run.config
    if run.method.clips is not None:
        return read_clips(run.data, step, run.method.clips, seed=config.seed, world=run.world)
    return read_batch(
        run.data,
        step,
        labelled=config.batch_labelled,
        unlabelled=config.batch_unlabelled,
        seed=config.seed,
        world=run.world,
    )


def uses_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs under bfloat16 autocast.

    Not by itself on a GPU before Ampere (T4, V100): torch takes bfloat16 there too, but only
    emulates it. Nor for a 3-D student on a processor: oneDNN's bfloat16 weight gradient of small
    3-D convolutions was seen to hold NaN now and then (torch 2.15, AVX512-BF16).
    """
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).major >= _BFLOAT16_SINCE
    return config.network.dimensions == 2 and computes_in_bfloat16()


def computes_in_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products; without them it is slower."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _after_step(
    run: Run,
    standing: Standing,
    tracker: Tracker | None,
    terms: LossTerms,
    loss: float,
    stop: StopRequest,
) -> None:
    last = standing.step == run.config.steps
    if tracker is not None and (standing.step % _SCALARS_EVERY == 0 or last):
        values = {f"loss/{name}": float(term.detach()) for name, term in terms.all_terms.items()}
        facts = {f"fact/{name}": float(value) for name, value in terms.facts.items()}
        rate = {"learning_rate": float(run.optimiser.param_groups[0]["lr"])}
        tracker.scalars({"loss/total": loss, **values, **facts, **rate}, standing.step)
    _validate_where_owed(run, standing, tracker, stop, terms.preview)


def _validate_where_owed(
    run: Run,
    standing: Standing,
    tracker: Tracker | None,
    stop: StopRequest,
    preview: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Validate if this step asks for it and its figures are not there yet.

    A stop leaves it undone: the next session, which finds no figures of its step, does it first.
    """
    asked = standing.step % run.config.eval_every == 0 or standing.step == run.config.steps
    if standing.step == 0 or not asked:
        return
    there = bool(standing.history) and standing.history[-1]["step"] == standing.step
    # The first process has the history, and a share of the cases if there are any.
    wanted = tracker is not None and bool(run.data.validation) and not there
    (owed,) = run.world.any(wanted)
    if not owed:
        return
    net = evaluated_network(run)
    metrics = validate(
        net,
        run.data.validation,
        run.config.preprocessing,
        run.class_names,
        world=run.world,
        is_stopped=lambda: _is_asked_to_stop(run, stop),
    )
    if tracker is not None and metrics is not None:
        _choose(standing, tracker, net, metrics, preview)


def _choose(
    standing: Standing,
    tracker: Tracker,
    net: SegmentationNet,
    metrics: dict[str, float],
    preview: Mapping[str, Tensor],
) -> None:
    if not metrics:
        _LOG.warning("no validation case shows a class: none can choose the step to keep")
        return
    standing.history.append({"step": float(standing.step), **metrics})
    tracker.scalars({f"validation/{name}": value for name, value in metrics.items()}, standing.step)
    tracker.pictures(preview, standing.step)
    if metrics["dice"] > standing.best_dice:
        standing.best_dice = metrics["dice"]
        standing.best_step = standing.step
        standing.best_weights = copied(net.state_dict())
    _LOG.info(
        "step %d: validation Dice %.4f (best %.4f at %d)",
        standing.step,
        metrics["dice"],
        standing.best_dice,
        standing.best_step,
    )


def evaluated_network(run: Run) -> SegmentationNet:
    """The network that is measured and saved: the average where there is one and it is wanted."""
    average = run.method.average
    if run.config.evaluate == "student" or average is None:
        return run.method.student
    return average


class _Clock:
    """Time left, the log line of the minute, and when a checkpoint is due."""

    def __init__(self, standing: Standing) -> None:
        now = time.monotonic()
        self._start, self._start_step, self._before_s = now, standing.step, standing.elapsed_s
        self._logged = self._saved = now

    def count(self, standing: Standing) -> float:
        """Bring the time that the run has taken up to date, and return the clock's."""
        now = time.monotonic()
        standing.elapsed_s = self._before_s + now - self._start
        return now

    def tick(
        self, run: Run, standing: Standing, loss: float, progress: ProgressCallback | None
    ) -> bool:
        """Tell how far the run is; whether a checkpoint is due, by steps or by seconds."""
        now = self.count(standing)
        per_step_s = (now - self._start) / (standing.step - self._start_step)
        left_s = per_step_s * (run.config.steps - standing.step)
        if progress is not None:
            best = standing.best_dice if standing.best_dice >= 0 else None
            progress(Progress(standing.step, run.config.steps, loss, left_s, best))
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            _LOG.info(
                "step %d of %d, loss %.4f, %.0f s left",
                standing.step,
                run.config.steps,
                loss,
                left_s,
            )
        by_steps = standing.step % run.config.checkpoint_every_steps == 0
        by_seconds = now - self._saved >= run.config.checkpoint_every_s
        return standing.step < run.config.steps and (by_steps or by_seconds)

    def kept(self) -> None:
        """A checkpoint was written."""
        self._saved = time.monotonic()
