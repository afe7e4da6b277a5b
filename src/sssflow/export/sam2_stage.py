"""The export of SAM-2: weights in, a bundle of proven ONNX graphs out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from onnx import ModelProto
from sam2.modeling.sam2_base import SAM2Base

from sssflow.contracts.base import Sha256
from sssflow.contracts.sam2_graphs import (
    GRAPHS,
    SAM2_BUNDLE_FILE,
    GraphName,
    Sam2Bundle,
    Sam2Gate,
    Sam2Graph,
    Sam2Rules,
    graph_file,
)
from sssflow.export.config import Sam2ExportConfig
from sssflow.export.sam2_dice import close_gates, largest_value
from sssflow.export.sam2_gates import Findings, exact_gates
from sssflow.export.sam2_modules import rules_of
from sssflow.export.sam2_onnx import OPSET, describe, make_graph, tensors_of, write_graph
from sssflow.sam.build import build_sam2, set_input_size
from sssflow.sam.onnx_backend import OnnxRunner, require_runtime
from sssflow.sam.pretrain_data import SceneSource, ShapeSource, labelled_source
from sssflow.sam.weights_io import load_weights, weights_path
from sssflow.storage.atomic import disk_errors, fsync_folder
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference, sha256_file

_STAGING = ".sam2-export"
_LARGEST_HALF = 65504.0

_logger = logging.getLogger(__name__)


def run(config: Sam2ExportConfig, out: Path, *, dataset: Path | None = None) -> Sam2Bundle:
    """Export SAM-2 for every size, pass the gates, and publish `bundle.json` last.

    Graphs are made in a hidden folder of `out` and moved only after the gates of all sizes have
    passed; a killed export leaves at most that folder, which the next one removes. While files of
    an older bundle are replaced there is no `bundle.json`, so that no reader sees a mixture.

    Args:
        config: Settings.
        out: Folder; gets `<size>/<graph>.onnx` and `bundle.json`.
        dataset: Path of a manifest.json whose labelled cases the gates of other precisions than
            fp32 are taken on; None: procedural shapes.

    Raises:
        DataError: The weights or the dataset cannot be read or do not fit.
        InternalError: A graph does not compute what SAM-2 computes; nothing is published.
        UsageError: An official size without weights, or ONNX Runtime is not installed.
        UnavailableError: The disk refuses.
    """
    require_runtime()
    path = weights_path(config.size, config.weights, where="weights")
    model = build_sam2(config.size, version=config.version, input_size=config.sizes_px[0])
    load_weights(model, path)
    model.requires_grad_(False)
    digest = sha256_file(path)
    rules = rules_of(model, hints=config.size == "nano")
    scenes = ShapeSource() if dataset is None else labelled_source(dataset, 1.0)
    staging = out / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    gates: list[Sam2Gate] = []
    try:
        for size_px in config.sizes_px:
            set_input_size(model, size_px)
            _logger.info("exporting SAM-2 %s for %d px, %s", config.size, size_px, config.precision)
            graphs = {name: make_graph(name, model) for name in GRAPHS}
            if config.precision == "fp16":
                gates += _half_gate(config, graphs, rules, scenes, size_px)
            _write(config, graphs, size_px, digest, rules, staging)
            gates += _pass(config, model, rules, staging, scenes)
        return _publish(config, model, digest, rules, tuple(gates), staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(
    config: Sam2ExportConfig,
    graphs: dict[GraphName, ModelProto],
    size_px: int,
    digest: Sha256,
    rules: Sam2Rules,
    staging: Path,
) -> None:
    for name, graph in graphs.items():
        describe(
            graph,
            name=name,
            size_px=size_px,
            variant=config.size,
            sam2_version=config.version,
            precision=config.precision,
            weights_sha256=digest,
            rules=rules,
        )
        with disk_errors(staging):
            write_graph(graph, staging / graph_file(name, size_px), config.precision)


def _half_gate(
    config: Sam2ExportConfig,
    graphs: dict[GraphName, ModelProto],
    rules: Sam2Rules,
    scenes: SceneSource,
    size_px: int,
) -> tuple[Sam2Gate, ...]:
    """Whether half precision holds every value: the CPU of the other gates computes in single."""
    findings = Findings(size_px)
    largest = largest_value(graphs, rules, scenes, config, size_px)
    findings.add("largest value for half precision", largest, _LARGEST_HALF)
    return findings.require()


def _pass(
    config: Sam2ExportConfig,
    model: SAM2Base,
    rules: Sam2Rules,
    staging: Path,
    scenes: SceneSource,
) -> tuple[Sam2Gate, ...]:
    size_px = int(model.image_size)
    runner = OnnxRunner({name: staging / graph_file(name, size_px) for name in GRAPHS})
    if config.precision == "fp32":
        gates = exact_gates(runner, model, seed=config.seed)
    else:
        gates = close_gates(runner, model, rules, scenes, config)
    for gate in gates:
        _logger.info("%d px, %s: %.2g (limit %g)", size_px, gate.gate, gate.found, gate.limit)
    return gates


def _publish(
    config: Sam2ExportConfig,
    model: SAM2Base,
    digest: Sha256,
    rules: Sam2Rules,
    gates: tuple[Sam2Gate, ...],
    staging: Path,
    out: Path,
) -> Sam2Bundle:
    graphs = []
    with disk_errors(out):
        (out / SAM2_BUNDLE_FILE).unlink(missing_ok=True)
        fsync_folder(out)
        for size_px in config.sizes_px:
            set_input_size(model, size_px)
            (out / str(size_px)).mkdir(exist_ok=True)
            for name in GRAPHS:
                file = graph_file(name, size_px)
                (staging / file).replace(out / file)
                inputs, outputs = tensors_of(name, model)
                graphs.append(
                    Sam2Graph(
                        graph=name,
                        size_px=size_px,
                        file=reference(out / file, base=out),
                        inputs=inputs,
                        outputs=outputs,
                    )
                )
            fsync_folder(out / str(size_px))
    bundle = Sam2Bundle(
        variant=config.size,
        sam2_version=config.version,
        precision=config.precision,
        weights_sha256=digest,
        opset=OPSET,
        width=int(model.hidden_dim),
        memory_width=int(model.mem_dim),
        rules=rules,
        graphs=tuple(graphs),
        gates=gates,
    )
    save_contract(bundle, out / SAM2_BUNDLE_FILE)
    return bundle
