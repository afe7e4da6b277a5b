"""What must fit together before a training may begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.model import TrainedModel
from sssflow.errors import UsageError
from sssflow.training.checkpoint import different_keys
from sssflow.training.config import TrainConfig
from sssflow.training.distributed import World
from sssflow.training.methods.base import Method
from sssflow.training.methods.reads import pastes
from sssflow.volume.intensity import require_units


def _key(name: str) -> str:
    """A setting as `--set` takes it: which of the three sections trains is not known here."""
    return f"train.{name} (or of warmup, baseline)"


def require_trainable(
    method: Method, config: TrainConfig, mask_sets: Sequence[tuple[MaskSet, Path]]
) -> None:
    """Refuse masks that are missing, networks that the method cannot train, and idle settings.

    Raises:
        UsageError: Any of them.
    """
    if method.needs_masks and not mask_sets:
        raise UsageError(
            f"The method {config.method} learns from SAM-2 masks, and none were given.",
            expected="masks.json of the infer stage",
            action="Run the prompts and infer stages first, or set train.sss.mask_weight=0.",
        )
    if config.network.dimensions not in method.dimensions:
        raise UsageError(
            f"The method {config.method} cannot train a {config.network.dimensions}-D network.",
            where=_key("network.dimensions"),
            expected=" or ".join(str(number) for number in sorted(method.dimensions)),
            found=config.network.dimensions,
            action="Choose another method or network; docs/how-to/train-in-3d.md lists them.",
        )
    if config.evaluate == "ema" and method.average is None:
        raise UsageError(
            f"The method {config.method} keeps no moving average that could be measured.",
            where=_key("evaluate"),
            expected="auto or student, or ema_evaluation=true",
            found="ema",
            action="Set ema_evaluation=true, or evaluate=auto, of that section.",
        )
    if method.clips is not None and config.foreground_probability > 0:
        raise UsageError(
            f"The method {config.method} reads whole clips and cannot draw slices by class.",
            where=_key("foreground_probability"),
            expected=0,
            found=config.foreground_probability,
            action="Leave it out.",
        )


def require_parts(method: Method, config: TrainConfig, world: World) -> None:
    """Refuse another number of processes than was asked for, and batches that they cannot share.

    Raises:
        UsageError: Either.
    """
    if world.size != config.processes:
        raise UsageError(
            "Another number of processes trains than the settings say.",
            where=_key("processes"),
            expected=config.processes,
            found=world.size,
            action="Use `sssflow train --gpus N`, which starts them, or correct the setting.",
        )
    if method.clips is not None:
        world.require_parts("clips_labelled", method.clips.labelled)
        world.require_parts("clips_unlabelled", method.clips.unlabelled)
        return
    multiple = method.batch_multiple
    world.require_parts("batch_labelled", config.batch_labelled, multiple)
    if method.needs_unlabelled:
        world.require_parts("batch_unlabelled", config.batch_unlabelled, multiple)


def partner_warnings(method: Method, config: TrainConfig, world: World) -> tuple[str, ...]:
    """What every reader must be told where CutMix has no partner: a part of one sample or clip.

    The partner is the part of the batch that the process has, in reversed order.
    """
    samples = config.batch_unlabelled if method.clips is None else method.clips.unlabelled
    if not pastes(config) or samples > world.size:
        return ()
    name = "batch_unlabelled" if method.clips is None else "sss_in_loop.clips_unlabelled"
    return (
        f"CutMix and class pasting had no effect: each process has one unlabelled sample "
        f"({name} {samples}, processes {world.size}), which is its own partner.",
    )


def require_same_student(
    start: TrainedModel, config: TrainConfig, manifest: DatasetManifest
) -> None:
    """Refuse a start whose network, preprocessing or classes are others.

    Raises:
        UsageError: They are.
    """
    wanted = {
        "network": config.network.model_dump(mode="json"),
        "preprocessing": config.preprocessing.model_dump(mode="json"),
        "classes": list(manifest.class_names),
    }
    found = {
        "network": start.network,
        "preprocessing": start.preprocessing.model_dump(mode="json"),
        "classes": list(start.class_names),
    }
    differing = different_keys(found, wanted)
    if differing:
        raise UsageError(
            "The training cannot start from this model.",
            where="--start",
            expected="a model of the network, preprocessing and classes of this training",
            found=f"{'; '.join(differing)} (model -> this training)",
            action="Give the training the settings of the model, or start without one.",
        )


def require_readable(config: TrainConfig, manifest: DatasetManifest) -> None:
    """Refuse a dataset whose images the training could not read, before any is opened.

    Raises:
        UsageError: An 8-bit image for an intensity rule in its own units.
    """
    for case in manifest.cases:
        require_units(config.preprocessing.intensity, case.quantised, case.case_id)
