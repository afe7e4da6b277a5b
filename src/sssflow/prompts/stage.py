"""The prompts stage: a trained student's coarse masks become PCSW prompts.

No label of any case is read, whatever its role: prompts come from the image and the model alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, UnlabelledCase
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.prompts import CasePrompts, PromptSet
from sssflow.errors import DataError, UsageError
from sssflow.networks.device import choose_device
from sssflow.networks.trained import LoadedModel, load_model
from sssflow.prompts.coarse import coarse_labels
from sssflow.prompts.config import PromptConfig
from sssflow.prompts.pcsw import class_taus, select_prompts
from sssflow.storage.atomic import disk_errors
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.volume.intensity import require_units
from sssflow.volume.packed import read_packed, write_packed

PROMPTS_FILE = "prompts.json"
_COARSE_FOLDER = "coarse"

_log = logging.getLogger(__name__)


def run(
    config: PromptConfig,
    dataset: Path,
    model: Path,
    out: Path,
    *,
    case_ids: Sequence[str] | None = None,
) -> PromptSet:
    """Prompt the cases of `config.roles` (or of them, only `case_ids`) and write `out`.

    Args:
        config: Settings.
        dataset: Path of a manifest.json.
        model: Path of a model.json.
        out: Folder; gets coarse/<case_id>.b2nd and, last, prompts.json. Equal inputs give equal
            bytes on one kind of machine.
        case_ids: The shard of this call; None for all. An empty one gives an empty PromptSet.

    Raises:
        DataError: The dataset or model is damaged, they have other classes, no case has the
            asked roles, or an id is unknown.
        UsageError: A tau names an unknown class, an id has another role, or the device is absent.
        UnavailableError: The disk is full or read-only.
    """
    manifest = load_contract(DatasetManifest, dataset)
    cases = _chosen(manifest, config, case_ids)
    loaded = load_model(model, device=choose_device(config.device, where="prompts.device"))
    _require_same_classes(manifest, loaded.description, model)
    class_taus(config.pcsw, manifest.class_names)
    # Coarse files are about to change: no old contract may name them meanwhile.
    with disk_errors(out):
        (out / PROMPTS_FILE).unlink(missing_ok=True)
    prompted = []
    for number, case in enumerate(cases, start=1):
        prompted.append(_prompt_case(case, manifest, loaded, config, dataset.parent, out))
        _log.info(
            "prompts %d/%d: %s, %d object(s)",
            number,
            len(cases),
            case.case_id,
            len(prompted[-1].objects),
        )
    prompts = PromptSet(
        dataset_digest=manifest.digest,
        model_digest=loaded.digest,
        method="pcsw",
        config_digest=config.digest(),
        class_names=manifest.class_names,
        cases=tuple(prompted),
    )
    save_contract(prompts, out / PROMPTS_FILE)
    _warn_of_unprompted_classes(prompts)
    return prompts


def _warn_of_unprompted_classes(prompts: PromptSet) -> None:
    found = {item.class_index for case in prompts.cases for item in case.objects}
    for index, name in enumerate(prompts.class_names):
        if index and index not in found and prompts.cases:
            _log.warning(
                "no prompt for %s in any of %d case(s), so that SAM-2 will make no mask of it: the "
                "model's coarse masks hold none of it, or none that reaches prompts.pcsw's tau",
                name,
                len(prompts.cases),
            )


def _prompt_case(
    case: LabelledCase | UnlabelledCase,
    manifest: DatasetManifest,
    loaded: LoadedModel,
    config: PromptConfig,
    base: Path,
    out: Path,
) -> CasePrompts:
    require_units(loaded.description.preprocessing.intensity, case.quantised, case.case_id)
    image_shw = read_packed(case.image, base=base, shape=case.grid.shape_shw)
    labels_shw, _ = coarse_labels(
        loaded.net, loaded.description, image_shw, batch_slices=config.batch_slices
    )
    coarse = write_packed(out / _COARSE_FOLDER / f"{case.case_id}.b2nd", labels_shw, base=out)
    return CasePrompts(
        case_id=case.case_id,
        shape_shw=case.grid.shape_shw,
        objects=select_prompts(labels_shw, config.pcsw, class_names=manifest.class_names),
        coarse=coarse,
    )


def _chosen(
    manifest: DatasetManifest, config: PromptConfig, case_ids: Sequence[str] | None
) -> tuple[LabelledCase | UnlabelledCase, ...]:
    roles = ", ".join(config.roles)
    if case_ids is None:
        cases = tuple(case for case in manifest.cases if case.role in config.roles)
        if not cases:
            raise DataError(
                "No case of the dataset has the role that is to be prompted.",
                where=manifest.name,
                expected=f"at least one {roles} case",
                action="Give another role with --set prompts.roles=[validation], or pack the "
                "dataset with unlabelled cases.",
            )
        return cases
    cases = manifest.select(case_ids)
    other = [f"{case.case_id} ({case.role})" for case in cases if case.role not in config.roles]
    if other:
        raise UsageError(
            "A case to prompt has another role than the configuration allows.",
            where=manifest.name,
            expected=roles,
            found=", ".join(other[:5]),
            action="Add its role to prompts.roles, or leave the case out.",
        )
    return cases


def _require_same_classes(
    manifest: DatasetManifest, description: TrainedModel, model: Path
) -> None:
    if description.class_names != manifest.class_names:
        raise DataError(
            "The model was trained on other classes than the dataset has.",
            where=model,
            expected=", ".join(manifest.class_names),
            found=", ".join(description.class_names),
            action="Use a model that was trained on these classes.",
        )
