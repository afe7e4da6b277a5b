"""The adapt stage: nano SAM-2 sees the labelled cases of a dataset before it is prompted on others.

A model of 4 M parameters that has only seen procedural shapes knows objects, not hearts. The few
labelled cases show it what it will be asked for, with prompts drawn from their masks: boxes,
points, degraded masks. No other role is touched: masks of unlabelled cases do not exist by type,
those of validation and test cases are not read.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import DataError, UsageError
from sssflow.sam import pretrain
from sssflow.sam.config import AdaptConfig, PretrainConfig, SamConfig
from sssflow.sam.weights_io import weights_path
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, sha256_file, verified_path

_LOG = logging.getLogger(__name__)
ADAPTED_FILE = "sam2.json"


def run(config: AdaptConfig, sam: SamConfig, dataset: Path, out: Path) -> PromptableWeights:
    """Adapt the weights that `sam` names to the labelled cases of `dataset`.

    With one thread equal settings, data and starting weights give equal bits. The same call again
    returns at once what is there; a run that was cut off, or whose weights were harmed since, is
    made again.

    Args:
        config: Settings; `steps` must be above 0.
        sam: Names the starting weights (only nano can be adapted), and how the infer stage turns
            voxels into grey values: SAM-2 is shown the cases as it will see others.
        dataset: Path of manifest.json.
        out: Folder; gets `nano.safetensors`, `nano.json`, and `sam2.json` last.

    Raises:
        UsageError: Another size than nano, no steps, or `out` holds another adaptation.
        DataError: The dataset cannot be read or has no labelled case.
    """
    if sam.size != "nano" or config.steps < 1:
        raise UsageError(
            "Only nano SAM-2 is adapted, and in at least one step.",
            where="adapt",
            expected="sam.size=nano and adapt.steps above 0",
            found=f"sam.size={sam.size}, adapt.steps={config.steps}",
            action="Set adapt.steps=0 to use the weights as they are.",
        )
    start = weights_path(sam.size, sam.weights)
    asked = {
        "start_sha256": sha256_file(start),
        "dataset_digest": load_contract(DatasetManifest, dataset).digest,
        "config_digest": config.digest_with(sam.intensity),
    }
    finished = _finished(out, asked)
    if finished is not None:
        return finished
    weights = pretrain.run(_training(config, start), out, dataset=dataset, intensity=sam.intensity)
    adapted = PromptableWeights(weights=reference(weights), steps=config.steps, **asked)
    save_contract(adapted, out / ADAPTED_FILE)
    return adapted


def _finished(out: Path, asked: dict[str, Sha256]) -> PromptableWeights | None:
    """The adaptation that is there, if it is the one that is asked for and its weights are whole.

    Raises:
        UsageError: It is another one.
    """
    path = out / ADAPTED_FILE
    if not path.exists():
        return None
    found = load_contract(PromptableWeights, path)
    differ = [name for name, value in asked.items() if getattr(found, name) != value]
    if differ:
        raise UsageError(
            "The folder holds an adaptation from other weights, data or settings.",
            where=path,
            expected="; ".join(f"{name} {asked[name][:12]}" for name in differ),
            found="; ".join(f"{name} {getattr(found, name)[:12]}" for name in differ),
            action="Choose another output folder, or remove this one.",
        )
    try:
        verified_path(found.weights, base=out)
    except DataError as error:
        _LOG.warning("The adapted weights are damaged, and made again.\n%s", error)
        path.unlink()
        return None
    _LOG.info("%s is finished; nothing to do", out)
    return found


def _training(config: AdaptConfig, start: Path) -> PretrainConfig:
    return PretrainConfig(
        start_from=str(start),
        steps=config.steps,
        stop_after=None,
        refine=(),
        dataset_share=config.dataset_share,
        # Prompted slices do not depend on each other with coarse guidance: no clips.
        clip_share=config.clip_share,
        clip_from=0.0,
        grey_hints=True,
        track_best_of_three=False,
        learning_rate=config.learning_rate,
        warmup_steps=min(20, config.steps),
        log_every=50,
        seed=config.seed,
        threads=1,
    )
