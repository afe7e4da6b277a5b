"""One run: SAM-2's masks where the method needs them made before, training, evaluation.

The staged chain (warm-up, adaptation, prompts, masks) and every training lie in folders named by
what they depend on (`sssflow.bench.shared`), so that all runs that need the same share one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sssflow.bench.plan import RunOrder
from sssflow.bench.shared import (
    adapted_name,
    chain_name,
    held,
    link_files,
    training_name,
    warmup_of,
)
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.bench import RunResult
from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.evaluation import EvaluationSummary
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.prompts import PromptSet
from sssflow.contracts.run import RunRecord
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import DataError, UsageError
from sssflow.evaluation import stage as evaluation
from sssflow.experiment import ExperimentConfig
from sssflow.networks.registry import build_network
from sssflow.prompts import stage as prompts
from sssflow.sam import adapt
from sssflow.sam import stage as sam
from sssflow.sam.generalist import load_generalist
from sssflow.sam.promptable import Generalist
from sssflow.storage.atomic import write_text
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, verified_path
from sssflow.training import stage as training
from sssflow.training.config import TrainConfig
from sssflow.training.loop import Progress
from sssflow.training.methods.reads import used_settings
from sssflow.training.methods.registry import build_method

_LOG = logging.getLogger(__name__)
RESULT_FILE = "result.json"
_MASKS, _PROMPTS = "masks/masks.json", "prompts/prompts.json"
_GIB = 1 << 30

Say = Callable[[str], None]


@dataclass
class Chain:
    """What was made before the training: a start, masks, and the time that each part took."""

    start: Path | None = None
    masks: list[Path] = field(default_factory=list)
    scored: list[Path] = field(default_factory=list)
    steps: int = 0
    wall_time_s: dict[str, float] = field(default_factory=dict)


def run(order: RunOrder, say: Say = _LOG.info) -> RunResult:
    """Train and measure what `order` says; a finished run is returned as it is.

    Args:
        order: Settings and places. `order.out` gets `train/`, `evaluation/`, and `result.json`
            last.
        say: Told what happens, at least at every step of the training.

    Raises:
        UsageError: Another run's results are in `order.out`, or the settings do not fit.
        DataError: The data cannot be used, or a loss is not finite.
        InterruptedRun: SIGINT or SIGTERM; the same call goes on from the checkpoint.
    """
    done = finished(order)
    if done is not None:
        return done
    settings = order.experiment
    manifest = load_contract(DatasetManifest, order.dataset)
    config, chain = settings.train, Chain()
    if needs_masks(config, manifest.class_count):
        chain = make_chain(order, say)
    generalist = None
    if any(train.method == "semisam" for train in (config, *order.beside)):
        generalist = load_generalist(
            settings.generalist, adapted=_adapted_for_generalist(order, chain, say)
        )
    records = {
        name: _train(order, name, train, chain, generalist, say)
        for name, train in zip(_names(order), (config, *order.beside), strict=True)
    }
    summary = _evaluate(order, chain, records, say)
    result = _result(order, chain, records, summary)
    save_contract(result, order.out / RESULT_FILE)
    return result


def _names(order: RunOrder) -> list[str]:
    """Folders of the trainings: `train` for the one, `train2` and so on for those beside it."""
    return ["train", *(f"train{number + 2}" for number in range(len(order.beside)))]


def _train(
    order: RunOrder,
    name: str,
    config: TrainConfig,
    chain: Chain,
    generalist: Generalist | None,
    say: Say,
) -> RunRecord:
    """One training; the start of the chain serves only a network of the same kind."""
    place = order.trainings / training_name(order, config)
    config = used_settings(config)
    start = chain.start if config.network == order.experiment.train.network else None
    if start is not None:
        config = config.model_copy(update={"steps": config.steps - chain.steps})
    told = config.method if name == "train" else f"{config.method}, {name}"
    with held(place, "training", say):
        record = training.run(
            config,
            order.dataset,
            place,
            masks=chain.masks,
            start=start,
            generalist=generalist,
            progress=_told(say, told),
        )
    link_files(place, order.out / name)
    chain.wall_time_s[name] = record.wall_time_s
    return record


def _evaluate(
    order: RunOrder, chain: Chain, records: dict[str, RunRecord], say: Say
) -> EvaluationSummary:
    say("evaluating")
    started = time.monotonic()
    config = order.experiment.evaluate
    if len(records) > 1:
        config = config.model_copy(update={"average": True})
    summary = evaluation.run(
        config,
        order.dataset,
        {name: order.out / name / "model" / "model.json" for name in records},
        order.out / "evaluation",
        runs={name: order.out / name / "run.json" for name in records},
        masks=[folder / _MASKS for folder in chain.scored],
        prompts=[folder / _PROMPTS for folder in chain.scored],
    )
    chain.wall_time_s["evaluate"] = time.monotonic() - started
    return summary


def finished(order: RunOrder) -> RunResult | None:
    """The result that is already there; None if there is none.

    A result whose scores are missing or damaged goes: the next run takes the training over and
    measures again. The model is not looked at, for no table reads it.

    Raises:
        UsageError: It is of other settings or data.
        DataError: It cannot be read.
    """
    path = order.out / RESULT_FILE
    if not path.exists():
        return None
    result = load_contract(RunResult, path)
    if result.order_digest != order.digest:
        raise UsageError(
            "The folder holds a run with other settings or data.",
            where=order.out,
            expected=f"digest {order.digest[:12]}",
            found=f"digest {result.order_digest[:12]}",
            action="Choose another output folder, or remove this run's folder.",
        )
    try:
        verified_path(result.cases, base=order.out)
    except DataError as error:
        _LOG.warning("%s: the scores are damaged, and made again.\n%s", order.key.name, error)
        path.unlink()
        return None
    return result


def needs_masks(config: TrainConfig, class_count: int) -> bool:
    """Whether the method, as it is configured, learns from masks that SAM-2 made before."""
    student = build_network(config.network, class_count, seed=config.seed)
    return build_method(student, config).needs_masks


def make_chain(order: RunOrder, say: Say) -> Chain:
    """Warm-up, adaptation of SAM-2, prompts and masks; parts that are whole are taken over.

    What is missing or damaged is made again, of the masks only those. Another process that makes
    the same chain is waited for.
    """
    settings, warmup = order.experiment, warmup_of(order)
    chain = Chain(steps=warmup.steps)
    with held(order.chains / chain_name(order), "SAM-2 masks", say) as out:
        record = training.run(
            warmup, order.dataset, out / "warmup", progress=_told(say, "warm-up, supervised")
        )
        chain.wall_time_s["warmup"] = record.wall_time_s
        chain.start = out / "warmup" / "model" / "model.json"
        weights = _adapted(order, chain, say)
        for role in (Role.UNLABELLED, *settings.pipeline.scored_roles):
            folder = out / role.value
            is_whole = _masks_are_whole(folder, chain.start)
            with _timed(out, f"sam2_{role.value}", is_whole, chain, say):
                if not is_whole:
                    _masks(settings, order.dataset, chain.start, role, folder, weights)
            if role is Role.UNLABELLED:
                chain.masks.append(folder / _MASKS)
            else:
                chain.scored.append(folder)
    return chain


def _adapted(order: RunOrder, chain: Chain, say: Say) -> Path | None:
    """SAM-2 after it saw the labelled cases; all runs of the same labels share it.

    None where the settings leave the adaptation out.
    """
    settings = order.experiment
    if not settings.adapt.steps:
        return None
    with held(order.chains / adapted_name(order), "adaptation of SAM-2", say) as out:
        weights = out / adapt.ADAPTED_FILE
        is_whole = _is_whole(weights, lambda: [load_contract(PromptableWeights, weights).weights])
        with _timed(out, "adapt", is_whole, chain, say):
            if not is_whole:
                say("SAM-2 sees the labelled cases")
            # Called in any case: it refuses an adaptation of other weights, and is quick if whole.
            adapt.run(settings.adapt, settings.sam, order.dataset, out)
    return weights


def _adapted_for_generalist(order: RunOrder, chain: Chain, say: Say) -> Path | None:
    """`_adapted`, where semisam asks that very model; weights that are named stay as they are."""
    asked = order.experiment.generalist
    if asked.kind != "sam2" or asked.weights or asked.size != order.experiment.sam.size:
        return None
    return _adapted(order, chain, say)


def _masks(
    settings: ExperimentConfig,
    dataset: Path,
    model: Path,
    role: Role,
    folder: Path,
    weights: Path | None,
) -> None:
    prompt_file = folder / _PROMPTS
    # Whole prompts stay: made anew on another kind of machine, they would change every mask.
    if not _prompts_are_whole(prompt_file, model):
        asked = settings.prompts.model_copy(update={"roles": (role,)})
        prompts.run(asked, dataset, model, prompt_file.parent)
    sam.run(settings.sam, dataset, prompt_file, folder / "masks", weights=weights)


def _masks_are_whole(folder: Path, model: Path) -> bool:
    """Whether prompts and masks of a role are there, unharmed, and made from `model`."""
    prompt_file, path = folder / _PROMPTS, folder / _MASKS
    if not _prompts_are_whole(prompt_file, model):
        return False

    def files() -> list[ObjectRef]:
        found = load_contract(MaskSet, path)
        # A process that was ended after it made the prompts anew leaves the masks of the old ones.
        if found.prompt_digest != load_contract(PromptSet, prompt_file).digest:
            raise DataError("The masks are of other prompts.", where=path)
        return [case.probability_kshw for case in found.cases]

    return _is_whole(path, files)


def _prompts_are_whole(path: Path, model: Path) -> bool:
    def files() -> list[ObjectRef]:
        found = load_contract(PromptSet, path)
        if found.model_digest != load_contract(TrainedModel, model).digest:
            raise DataError("The prompts are another model's.", where=path)
        return [case.coarse for case in found.cases if case.coarse is not None]

    return _is_whole(path, files)


def _is_whole(path: Path, files: Callable[[], Sequence[ObjectRef]]) -> bool:
    """Whether `path` is there and `files`, which it names below its folder, are unharmed."""
    if not path.exists():
        return False
    try:
        for ref in files():
            verified_path(ref, base=path.parent)
    except DataError as error:
        _LOG.warning("a part of the chain is damaged, and made again.\n%s", error)
        return False
    return True


@contextmanager
def _timed(out: Path, part: str, is_whole: bool, chain: Chain, say: Say) -> Iterator[None]:
    """Time what is made; its seconds are kept in a file for later runs.

    A repair takes less than the making did, and the making is what the part costs.
    """
    kept = out / f"{part}.seconds"
    seconds = float(kept.read_text("utf-8")) if kept.exists() else 0.0
    started = time.monotonic()
    if not is_whole:
        say(f"{part}: started")
    yield
    if not is_whole:
        seconds = max(seconds, time.monotonic() - started)
        write_text(kept, f"{seconds:.3f}\n")
    chain.wall_time_s[part] = seconds


def _told(say: Say, what: str) -> Callable[[Progress], None]:
    def tell(now: Progress) -> None:
        best = "" if now.best_dice is None else f", best validation Dice {now.best_dice:.3f}"
        say(f"{what}: step {now.step} of {now.steps}, loss {now.loss:.3f}{best}")

    return tell


def _result(
    order: RunOrder, chain: Chain, records: dict[str, RunRecord], summary: EvaluationSummary
) -> RunResult:
    """Steps and selection are the first network's, figures the headline's: the mean's, if any."""
    record, figures = records["train"], summary.models[-1]
    history = [row["dice"] for row in record.history if "dice" in row]
    models = [order.out / name / "model" / "model.json" for name in records]
    return RunResult(
        key=order.key,
        order_digest=order.digest,
        config_digest=record.config_digest,
        dataset_digest=summary.dataset_digest,
        model=reference(models[0], base=order.out),
        model_digest=figures.model_digest,
        weights_bytes=sum(load_contract(TrainedModel, m).weights.size_bytes for m in models),
        selection=record.selection,
        best_step=record.best_step,
        steps_of_training=record.steps,
        steps_of_warmup=chain.steps,
        steps_in_all=chain.steps + sum(r.steps for r in records.values()),
        validation_dice_best=max(history, default=None),
        validation_dice_last=history[-1] if history else None,
        roles=summary.roles,
        cases=reference(order.out / "evaluation" / summary.files["cases"].uri, base=order.out),
        strict=figures.strict,
        ssl4mis=figures.ssl4mis,
        sam2=summary.sam2,
        wall_time_s=chain.wall_time_s,
        device=record.device,
        peak_gpu_gib=_peak_gpu_gib(),
        notes=(*record.notes, *summary.notes),
    )


def _peak_gpu_gib() -> float | None:
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_reserved() / _GIB
