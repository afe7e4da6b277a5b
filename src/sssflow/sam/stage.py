"""The infer stage: prompts and images in, scored soft masks out.

Restartable: each finished case leaves its masks and a small record; a run with the same inputs,
weights and settings takes over every record whose file still has its digest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import Contract, Sha256
from sssflow.contracts.dataset import DatasetManifest, LabelledCase, UnlabelledCase
from sssflow.contracts.masks import CaseMasks, MaskSet, require_same_dataset
from sssflow.contracts.prompts import CasePrompts, PromptSet
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import DataError, UsageError
from sssflow.sam.config import OnnxConfig, SamConfig
from sssflow.sam.onnx_backend import load_onnx_promptable
from sssflow.sam.pretrain_data import grey_volume, intensity_rule
from sssflow.sam.promptable import Promptable
from sssflow.sam.propagate import segment_volume
from sssflow.sam.torch_backend import load_torch_promptable
from sssflow.sam.triton_backend import load_triton_promptable
from sssflow.serving.config import ClientConfig
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import sha256_bytes, verified_path
from sssflow.volume.packed import read_packed, write_packed
from sssflow.volume.silence import silent_classes

BACKENDS: dict[str, Callable[[SamConfig], Promptable]] = {
    "torch": load_torch_promptable,
    "onnx": load_onnx_promptable,
    "triton": load_triton_promptable,
}

_LOG = logging.getLogger(__name__)


class _FinishedCase(Contract):
    """Record of one finished case; `key` names everything that its masks depend on."""

    schema_name: ClassVar[str] = "sssflow.masks.case"

    key: Sha256
    masks: CaseMasks


def run(
    config: SamConfig, dataset: Path, prompts: Path, out: Path, *, weights: Path | None = None
) -> MaskSet:
    """Segment every case of a prompt set with SAM-2.

    Args:
        config: Settings.
        dataset: Path of manifest.json; only images are read.
        prompts: Path of prompts.json.
        out: Folder; gets `masks/<case_id>.b2nd` (uint8 (k, s, h, w)) and `masks.json` last.
        weights: The `sam2.json` of the adapt stage; its weights replace those of `config`.

    Raises:
        DataError: Prompts of another dataset, or a file that is missing or changed.
        UsageError: A backend that is not here, weights that are not given, or an intensity rule
            that does not fit.
    """
    manifest = load_contract(DatasetManifest, dataset)
    prompt_set = load_contract(PromptSet, prompts)
    require_same_dataset([prompt_set.dataset_digest], manifest.digest, what="prompts")
    if weights is not None:
        adapted = load_contract(PromptableWeights, weights)
        path = verified_path(adapted.weights, base=weights.parent)
        config = config.model_copy(update={"weights": str(path)})
    model = load_promptable(config)
    cases = {case.case_id: case for case in manifest.select(c.case_id for c in prompt_set.cases)}
    finished = []
    for number, item in enumerate(prompt_set.cases, start=1):
        key = _key(config, manifest, item, model, cases[item.case_id])
        record = _reusable(out, item.case_id, key)
        if record is None:
            coarse = _coarse(item, prompts.parent)
            case_masks = _segment_case(model, config, manifest, dataset, item, out, coarse)
            record = _FinishedCase(key=key, masks=case_masks)
            save_contract(record, _record_path(out, item.case_id))
        finished.append(record.masks)
        _LOG.info("case %d of %d: %s", number, len(prompt_set.cases), item.case_id)
    mask_set = MaskSet(
        dataset_digest=manifest.digest,
        prompt_digest=prompt_set.digest,
        model_digest=model.model_digest,
        backend=model.backend,
        config_digest=_settings_digest(config),
        class_names=manifest.class_names,
        cases=tuple(finished),
    )
    save_contract(mask_set, out / "masks.json")
    for name in silent_classes([(mask_set, out)], manifest.class_names):
        _LOG.warning("%s: the masks of these %d case(s) hold none of it", name, len(finished))
    return mask_set


def _settings_digest(config: SamConfig) -> Sha256:
    """Digest of the settings without the place of the weights, which have a digest of their own."""
    return config.model_copy(
        update={"weights": None, "onnx": OnnxConfig(), "triton": ClientConfig()}
    ).digest()


def load_promptable(config: SamConfig) -> Promptable:
    """The backend that the configuration names.

    Raises:
        UsageError: The backend is not part of this version.
    """
    load = BACKENDS.get(config.backend)
    if load is None:
        raise UsageError(
            f"The SAM-2 backend {config.backend!r} is not part of this version.",
            where="sam.backend",
            expected=" | ".join(BACKENDS),
            found=config.backend,
            action="Set sam.backend to one of these.",
        )
    return load(config)


def _coarse(prompts: CasePrompts, base: Path) -> NDArray[np.uint8] | None:
    """The coarse masks that a case's prompts come from, if they were kept."""
    if prompts.coarse is None:
        return None
    return read_packed(prompts.coarse, base=base, shape=prompts.shape_shw).astype(np.uint8)


def _segment_case(
    model: Promptable,
    config: SamConfig,
    manifest: DatasetManifest,
    dataset: Path,
    prompts: CasePrompts,
    out: Path,
    coarse_shw: NDArray[np.uint8] | None,
) -> CaseMasks:
    (case,) = manifest.select([prompts.case_id])
    shape = case.grid.shape_shw
    if prompts.shape_shw != shape:
        raise DataError(
            "The prompts of a case belong to another grid.",
            where=prompts.case_id,
            expected=shape,
            found=prompts.shape_shw,
            action="Run the prompts stage again on this dataset.",
        )
    volume = grey_volume(case, dataset.parent, config.intensity)
    result = segment_volume(model, volume, prompts, manifest.class_count, config, coarse_shw)
    path = out / "masks" / f"{prompts.case_id}.b2nd"
    reference = write_packed(path, result.probability_kshw, base=out)
    return CaseMasks(case_id=prompts.case_id, probability_kshw=reference, objects=result.objects)


def _key(
    config: SamConfig,
    manifest: DatasetManifest,
    prompts: CasePrompts,
    model: Promptable,
    case: LabelledCase | UnlabelledCase,
) -> Sha256:
    facts = (
        _settings_digest(config),
        model.model_digest,
        case.image.sha256,
        # The same voxels are other grey values in a dataset that calls them CT and no longer MR.
        intensity_rule(case.modality, config.intensity).model_dump_json(),
        str(manifest.class_count),
        prompts.model_dump_json(),
    )
    return sha256_bytes("\n".join(facts).encode())


def _reusable(out: Path, case_id: str, key: Sha256) -> _FinishedCase | None:
    """The record of a finished case, if it is of this key and its masks are unharmed."""
    path = _record_path(out, case_id)
    if not path.is_file():
        return None
    try:
        record = load_contract(_FinishedCase, path)
        if record.key != key:
            return None
        verified_path(record.masks.probability_kshw, base=out)
    except DataError as error:
        _LOG.warning("case %s is made again: %s", case_id, error.what)
        return None
    return record


def _record_path(out: Path, case_id: str) -> Path:
    return out / "masks" / f"{case_id}.json"
