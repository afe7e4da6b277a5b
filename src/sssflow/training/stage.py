"""The train stage: a dataset (and SAM-2 masks) in, a trained student and its record out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from sssflow.contracts.base import ObjectRef, Sha256
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.masks import CaseMasks, MaskSet, require_same_dataset
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError, UnavailableError
from sssflow.networks.base import SegmentationNet
from sssflow.networks.registry import build_network
from sssflow.networks.trained import MODEL_FILE, LoadedModel, Provenance, load_model, save_model
from sssflow.sam.promptable import Generalist
from sssflow.storage.atomic import disk_errors, sweep_leftovers
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, verified_path
from sssflow.storage.lock import locked
from sssflow.training.checkpoint import (
    CheckpointManifest,
    State,
    list_checkpoints,
    load_newest,
    require_same_run,
    sweep_checkpoints,
)
from sssflow.training.compiled import CompiledNetworks
from sssflow.training.config import TrainConfig
from sssflow.training.distributed import ALONE, World
from sssflow.training.load import load_streams
from sssflow.training.loop import (
    ProgressCallback,
    build_optimiser,
    evaluated_network,
    train,
    uses_bfloat16,
)
from sssflow.training.machine import device_name, process_device, threads, versions
from sssflow.training.memory import training_fits
from sssflow.training.methods.registry import METHODS, build_method
from sssflow.training.outside import Outside, generalist_note, outside_of
from sssflow.training.requirements import (
    partner_warnings,
    require_parts,
    require_same_student,
    require_trainable,
)
from sssflow.training.seen import seen_images
from sssflow.training.standing import Run, Standing, begin, copied
from sssflow.training.tracking import Tracker
from sssflow.training.unseen import unseen_warnings
from sssflow.volume.silence import silence_warnings

_LOG = logging.getLogger(__name__)
RUN_FILE = "run.json"
_NO_STATE = ObjectRef(uri="-", size_bytes=0, sha256="0" * 64)


def run(
    config: TrainConfig,
    dataset: Path,
    out: Path,
    *,
    masks: Sequence[Path] = (),
    start: Path | None = None,
    generalist: Generalist | None = None,
    leak_labels_from: Path | None = None,
    resume: bool = True,
    progress: ProgressCallback | None = None,
    world: World = ALONE,
) -> RunRecord:
    """Train into `out`: `model/model.json`, `checkpoints/`, `tensorboard/`, and last `run.json`.

    The same call again resumes an interrupted run and returns at once from a finished one.

    Args:
        config: Settings.
        dataset: The `manifest.json` of a packed dataset.
        out: Folder of this run alone.
        masks: The `masks.json` of every shard of the infer stage (method `sss`).
        start: The `model.json` whose weights the student (and so its teacher) starts from;
            None: fresh weights. It must be the same network for the same classes.
        generalist: The frozen model that the method `semisam` asks; others never see it.
        leak_labels_from: The manifest in which the unlabelled cases are labelled; only for
            `semisam.preset: oracle_prompts`, whose figures it spoils on purpose.
        resume: False throws away what an earlier run left in `out`.
        progress: Called after every step.
        world: The processes that train together, already joined; each makes this same call, and
            only the first reads and writes `out`.

    Raises:
        DataError: A changed or unfit input, or a loss that is not finite.
        UsageError: Another run's settings or data are in `out`, or the settings do not fit: to
            each other, to the data, or into memory.
        UnavailableError: Another process is training into `out`, the disk is full, or a process
            of `world` ended or gave no answer.
        InterruptedRun: SIGINT or SIGTERM; a checkpoint is written.
    """
    manifest = load_contract(DatasetManifest, dataset)
    mask_sets = [(load_contract(MaskSet, path), path.parent) for path in masks]
    require_same_dataset(
        [found.dataset_digest for found, _ in mask_sets], manifest.digest, what="masks"
    )
    started = None if start is None else load_model(start)
    outside = outside_of(config, generalist, leak_labels_from)
    inputs = outside.inputs | _inputs(manifest, mask_sets, started) | _sam2_input(config, started)
    busy = UnavailableError(
        "Another process is training into this folder.",
        where=out,
        action="Wait for it, or choose another output folder.",
    )
    with locked(out / ".lock", refusal=busy) if world.is_first else nullcontext():
        if not resume and world.is_first:
            _clear(out)
        finished = _finished(out, config, inputs) if world.is_first else None
        (is_finished,) = world.any(finished is not None)
        if is_finished:
            return _told(world, finished)
        with threads(config.threads, world), training_fits():
            prepared = prepare(
                config,
                manifest,
                dataset.parent,
                out / "checkpoints",
                mask_sets,
                inputs,
                start=started,
                outside=outside,
                world=world,
            )
            origin = None
            if world.is_first:
                origin = _origin(prepared, manifest, mask_sets, started)
            return _train(prepared, origin, out, progress)


@dataclass(frozen=True)
class _Origin:
    """What a model comes from; `warnings` are for every reader of its figures."""

    manifest: DatasetManifest
    start: TrainedModel | None
    warnings: tuple[str, ...]


def _origin(
    prepared: Run,
    manifest: DatasetManifest,
    mask_sets: Sequence[tuple[MaskSet, Path]],
    started: LoadedModel | None,
) -> _Origin:
    method, classes = prepared.method, manifest.class_names
    notes = unseen_warnings(prepared.data.labelled, classes)
    notes += partner_warnings(method, prepared.config, prepared.world)
    notes += silence_warnings(mask_sets if method.needs_masks else (), classes)
    for note in notes:
        _LOG.warning("%s", note)
    start = None if started is None else started.description
    return _Origin(manifest, start, (*method.warnings, *notes))


def _train(
    prepared: Run, origin: _Origin | None, out: Path, progress: ProgressCallback | None
) -> RunRecord:
    """Train to the end and publish; `origin` is needed by the first process alone."""
    world = prepared.world
    standing = begin(prepared, _newest(prepared, out) if world.is_first else None)
    tracker = None
    if world.is_first:
        tracker = Tracker(out / "tensorboard", done_steps=standing.step)
    try:
        train(prepared, standing, tracker, progress)
    finally:
        if tracker is not None:
            tracker.close()
    return _told(world, None if origin is None else _publish(prepared, standing, origin, out))


def _newest(prepared: Run, out: Path) -> tuple[CheckpointManifest, State] | None:
    """The newest good checkpoint, if there is one and it is this run's."""
    sweep_checkpoints(prepared.checkpoints)
    sweep_leftovers(out)
    found = load_newest(prepared.checkpoints)
    if found is not None:
        wanted = prepared.manifest
        require_same_run(found[0], config=wanted.config, inputs=wanted.inputs, where=out)
        _LOG.info("resuming after step %d of %d", found[0].step, prepared.config.steps)
    return found


def _told(world: World, record: RunRecord | None) -> RunRecord:
    """The record that the first process has, in every process; others pass None."""
    told = world.share(None if record is None else {"record": record.to_json()})
    return RunRecord.from_json(told["record"])


def prepare(
    config: TrainConfig,
    manifest: DatasetManifest,
    base: Path,
    checkpoints: Path,
    mask_sets: Sequence[tuple[MaskSet, Path]] = (),
    inputs: Mapping[str, Sha256] | None = None,
    *,
    start: LoadedModel | None = None,
    outside: Outside = Outside(),  # noqa: B008 - frozen and empty
    world: World = ALONE,
) -> Run:
    """Everything the loop needs, on its device; writes nothing."""
    device = process_device(config.device, world.local_rank if world.size > 1 else None)
    method_type = METHODS[config.method]
    method = build_method(_student(config, manifest, start), config)
    method.generalist = outside.generalist
    require_trainable(method, config, mask_sets)
    require_parts(method, config, world)
    masks = _by_case(mask_sets) if method.needs_masks else None
    needs_unlabelled = method_type.needs_unlabelled
    data = load_streams(
        config,
        manifest,
        base,
        device=device,
        needs_unlabelled=needs_unlabelled,
        masks=masks,
        world=world,
    )
    method.modules.to(device)
    if config.network.dimensions == 2:
        method.modules.to(memory_format=torch.channels_last)
    return Run(
        config=config,
        method=method,
        optimiser=build_optimiser(method, config.optimiser),
        data=outside.leak_into(data, config, manifest, device),
        class_names=manifest.class_names,
        checkpoints=checkpoints,
        manifest=CheckpointManifest(
            step=0,
            method=config.method,
            config=config.model_dump(mode="json"),
            inputs=dict(inputs or {}),
            state=_NO_STATE,
        ),
        device=device,
        world=world,
        compiled=CompiledNetworks(method.modules) if config.compile else nullcontext(),
    )


def _publish(
    prepared: Run,
    standing: Standing,
    origin: _Origin,
    out: Path,
) -> RunRecord:
    config, manifest, warnings = prepared.config, origin.manifest, origin.warnings
    chosen = bool(standing.best_weights) and config.selection == "validation"
    weights = standing.best_weights if chosen else copied(evaluated_network(prepared).state_dict())
    step = standing.best_step if chosen else standing.step
    name = "ema" if evaluated_network(prepared) is prepared.method.average else "student"
    seen = seen_images(
        manifest,
        origin.start,
        unlabelled=prepared.data.unlabelled is not None,
        leaked="leaked_labels" in prepared.manifest.inputs,
        selected=chosen,
    )
    provenance = Provenance(
        manifest.class_names, manifest.digest, config.method, step, warnings, seen
    )
    save_model(out / "model", weights, config.network, config.preprocessing, provenance)
    best = next((row for row in standing.history if row["step"] == step), {})
    record = RunRecord(
        method=config.method,
        config=config.model_dump(mode="json"),
        config_digest=config.digest(),
        seed=config.seed,
        versions=versions(),
        inputs=prepared.manifest.inputs,
        steps=standing.step,
        best_step=step,
        selection=f"{_selection(config, chosen)}, weights: {name}",
        metrics={f"validation_{k}": v for k, v in best.items() if k != "step"},
        history=tuple(standing.history),
        checkpoints=tuple(
            reference(path / "MANIFEST.json", base=out)
            for path in list_checkpoints(prepared.checkpoints)
        ),
        model=reference(out / "model" / MODEL_FILE, base=out),
        wall_time_s=standing.elapsed_s,
        device=device_name(
            prepared.device, prepared.world.size, half=uses_bfloat16(config, prepared.device)
        ),
        notes=(*warnings, *generalist_note(prepared.method.generalist)),
    )
    save_contract(record, out / RUN_FILE)
    return record


def _selection(config: TrainConfig, chosen: bool) -> str:
    if chosen:
        return "best mean foreground Dice on the validation cases"
    if config.selection == "last":
        return "last step (nothing was selected)"
    return "last step (the dataset has no validation case that shows a class)"


def _finished(out: Path, config: TrainConfig, inputs: dict[str, Sha256]) -> RunRecord | None:
    """The record of a finished run, if it is the one that is asked for and its model is whole.

    Without its model the record goes too: the newest checkpoint gives both again.
    """
    path = out / RUN_FILE
    if not path.exists():
        return None
    record = load_contract(RunRecord, path)
    as_checkpoint = CheckpointManifest(
        step=record.steps, method=record.method, config=record.config, inputs=record.inputs,
        state=_NO_STATE,
    )  # fmt: skip
    require_same_run(
        as_checkpoint, config=config.model_dump(mode="json"), inputs=inputs, where=path
    )
    try:
        load_model(verified_path(record.model, base=out))
    except DataError as error:
        _LOG.warning("The model of the finished run is damaged, and made again.\n%s", error)
        path.unlink()
        return None
    _LOG.info("%s is finished; nothing to do", out)
    return record


def _student(
    config: TrainConfig, manifest: DatasetManifest, start: LoadedModel | None
) -> SegmentationNet:
    student = build_network(config.network, manifest.class_count, seed=config.seed)
    if start is not None:
        require_same_student(start.description, config, manifest)
        student.load_state_dict(start.net.state_dict())
    elif config.network.name == "sam2":
        from sssflow.sam.segmenter import load_start_weights

        load_start_weights(student, config.network.sam2)
    return student


def _sam2_input(config: TrainConfig, start: LoadedModel | None) -> dict[str, Sha256]:
    """The weights that a SAM-2 student starts from, where the run names some."""
    if start is not None or config.network.name != "sam2":
        return {}
    from sssflow.sam.segmenter import start_weights_digest

    digest = start_weights_digest(config.network.sam2)
    return {} if digest is None else {"sam2_weights": digest}


def _inputs(
    manifest: DatasetManifest,
    mask_sets: Sequence[tuple[MaskSet, Path]],
    start: LoadedModel | None,
) -> dict[str, Sha256]:
    named = {f"masks_{i}": found.digest for i, (found, _) in enumerate(mask_sets)}
    if start is not None:
        named["start"] = start.digest
    return {"dataset": manifest.digest, **named}


def _by_case(
    mask_sets: Sequence[tuple[MaskSet, Path]],
) -> dict[str, tuple[CaseMasks, Path]]:
    found: dict[str, tuple[CaseMasks, Path]] = {}
    for masks, folder in mask_sets:
        for case in masks.cases:
            if case.case_id in found:
                raise DataError(
                    "Two mask sets hold the same case.",
                    where=case.case_id,
                    action="Give each shard of the infer stage once.",
                )
            found[case.case_id] = (case, folder)
    return found


def _clear(out: Path) -> None:
    """Raise UnavailableError where something stays, which the run would take up or show."""
    with disk_errors(out):
        (out / RUN_FILE).unlink(missing_ok=True)
        for name in ("checkpoints", "tensorboard", "model"):
            if (out / name).exists():
                shutil.rmtree(out / name)
