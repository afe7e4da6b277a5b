"""The export stage: a trained student in, an ONNX file with its proof and its card out."""

from __future__ import annotations

import logging
import statistics
from pathlib import Path

from sssflow.contracts.bundle import ModelBundle
from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.evaluation import EvaluationSummary
from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError
from sssflow.export.config import ExportConfig
from sssflow.export.model_card import CardFacts, model_card
from sssflow.export.onnx import (
    export_graph,
    metadata,
    serialise,
    set_metadata,
    tensor_contracts,
)
from sssflow.export.parity import check_parity, choose_slices, onnx_runner
from sssflow.networks.trained import MODEL_FILE, LoadedModel, load_model
from sssflow.storage.atomic import write_bytes, write_text
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, sha256_file

BUNDLE_FILE = "bundle.json"
_ONNX_FILE = "student.onnx"
_CARD_FILE = "model_card.md"

_logger = logging.getLogger(__name__)


def run(
    config: ExportConfig,
    model: Path,
    dataset: Path,
    out: Path,
    *,
    run: Path | None = None,
    evaluation: Path | None = None,
) -> ModelBundle:
    """Export a student, prove the export, and publish `bundle.json` last.

    Args:
        config: Settings.
        model: Path of `model.json`.
        dataset: Path of the `manifest.json` the model was trained on.
        out: Folder for `student.onnx`, `model_card.md` and `bundle.json`.
        run: `run.json` of the training, for the card.
        evaluation: Summary of the evaluation, for the card.

    Raises:
        DataError: An input cannot be read or belongs to something else.
        InternalError: The graph does not compute what PyTorch computes; nothing is published.
        UsageError: ONNX Runtime is not installed.
        UnavailableError: The disk refuses.
    """
    loaded = load_model(model)
    manifest = load_contract(DatasetManifest, dataset)
    _require_same_dataset(loaded, manifest, model)
    record = None if run is None else _record_of(run, model)
    summary = None if evaluation is None else load_contract(EvaluationSummary, evaluation)

    spacing_shw_mm = median_spacing(manifest)
    _logger.info("exporting the student to ONNX, operator set %d", config.opset)
    graph = export_graph(loaded, opset=config.opset)
    facts = metadata(
        loaded,
        dataset_digest=manifest.digest,
        spacing_shw_mm=spacing_shw_mm,
        intended_use=config.intended_use,
    )
    set_metadata(graph, facts)
    data = serialise(graph)
    slices = choose_slices(manifest, dataset.parent, loaded.description.preprocessing, config)
    parity = check_parity(onnx_runner(data), loaded, slices, config)
    worst = max(figure.max_abs_difference for figure in parity)
    _logger.info("%d comparisons with PyTorch, largest difference %.2g", len(parity), worst)

    inputs, outputs = tensor_contracts(loaded)
    card = CardFacts(
        model=loaded.description,
        model_digest=loaded.digest,
        manifest=manifest,
        config=config,
        inputs=inputs,
        outputs=outputs,
        parity=parity,
        spacing_shw_mm=spacing_shw_mm,
        run=record,
        evaluation=summary,
    )
    write_bytes(out / _ONNX_FILE, data)
    write_text(out / _CARD_FILE, model_card(card))
    bundle = _bundle(card, out)
    save_contract(bundle, out / BUNDLE_FILE)
    return bundle


def _bundle(card: CardFacts, out: Path) -> ModelBundle:
    """The contract of the files that were just written to `out`."""
    return ModelBundle(
        onnx=reference(out / _ONNX_FILE),
        model_card=reference(out / _CARD_FILE),
        opset=card.config.opset,
        inputs=card.inputs,
        outputs=card.outputs,
        preprocessing=card.model.preprocessing,
        class_names=card.model.class_names,
        spacing_shw_mm=card.spacing_shw_mm,
        parity=card.parity,
        model_digest=card.model_digest,
        dataset_digest=card.manifest.digest,
        intended_use=card.config.intended_use,
    )


def median_spacing(manifest: DatasetManifest) -> tuple[float, float, float] | None:
    """Median voxel size of the training cases in mm; None where the source stores none."""
    cases = [*manifest.with_role(Role.LABELLED), *manifest.with_role(Role.UNLABELLED)]
    known = [case.grid.spacing_shw_mm for case in cases if case.grid.spacing_known]
    if not known:
        return None
    s, h, w = (statistics.median(axis) for axis in zip(*known, strict=True))
    return s, h, w


def _require_same_dataset(loaded: LoadedModel, manifest: DatasetManifest, model: Path) -> None:
    if loaded.description.dataset_digest != manifest.digest:
        raise DataError(
            "The model was trained on another dataset.",
            where=model,
            expected=f"dataset digest {loaded.description.dataset_digest[:12]}…",
            found=f"{manifest.digest[:12]}…",
            action="Give the manifest.json that the training used.",
        )


def _record_of(run: Path, model: Path) -> RunRecord:
    """The record, after checking that it is about this very model."""
    record = load_contract(RunRecord, run)
    file = model / MODEL_FILE if model.is_dir() else model
    found = sha256_file(file)
    if record.model.sha256 != found:
        raise DataError(
            "The run record is about another model.",
            where=run,
            expected=f"SHA-256 of model.json {record.model.sha256[:12]}…",
            found=f"{found[:12]}…",
            action="Give the run.json that lies beside the model.",
        )
    return record
