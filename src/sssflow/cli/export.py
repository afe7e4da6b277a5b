"""`sssflow export`: a trained student, or SAM-2, as ONNX that was proven to compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sssflow.cli.progress import working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    ManifestArgument,
    OutArgument,
    Plan,
    PrintConfigOption,
    SetOption,
    finish,
    following,
    need,
    quoted,
    read_experiment,
    show_config,
)
from sssflow.configuration import load_config


class _StudentByDefault(TyperGroup):
    """`sssflow export MANIFEST MODEL OUT` means `sssflow export student …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["student", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_StudentByDefault,
    help="Models as ONNX. Without the word student or sam2, the student is meant.",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    """Models as ONNX. Without the word student or sam2, the student is meant."""


@app.command()
def student(
    context: typer.Context,
    dataset: ManifestArgument = None,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", show_default=False, help="model.json of a trained run."),
    ] = None,
    out: OutArgument = None,
    run: Annotated[Path | None, typer.Option("--run", help="run.json, for the model card.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="evaluation.json, for the model card.")
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write MODEL as ONNX and prove on slices of MANIFEST that it computes the same."""
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    model = need(model, "MODEL", "model.json of `sssflow train`")
    out = need(out, "OUT", "the folder for the bundle")
    reads = {"dataset": dataset, "model": model}
    reads |= {"run": run} if run is not None else {}
    reads |= {"evaluation": evaluation} if evaluation is not None else {}
    does = "writes ONNX, compares it with PyTorch on real slices, and writes the model card"
    checks = [partial(_check_student, dataset, model, run, evaluation)]
    plan = Plan("export student", does, out, reads, checks=checks)
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.export import stage

    with working("export"):
        bundle = stage.run(experiment.export, model, dataset, out, run=run, evaluation=evaluation)
    worst = max(figure.max_abs_difference for figure in bundle.parity)
    facts = {
        "opset": bundle.opset,
        "classes": ", ".join(bundle.class_names),
        "largest difference": f"{worst:.2e} (limit {bundle.parity[0].tolerance:.0e})",
        "masks equal": all(figure.masks_equal for figure in bundle.parity),
    }
    predict = following(config, settings, "predict", model, "NEW_SCANS", "MASKS")
    finish(out / "bundle.json", facts, [predict])


def _check_student(dataset: Path, model: Path, run: Path | None, evaluation: Path | None) -> None:
    from sssflow.cli.inputs import read_input
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.evaluation import EvaluationSummary
    from sssflow.contracts.model import TrainedModel
    from sssflow.contracts.run import RunRecord

    read_input(DatasetManifest, dataset)
    read_input(TrainedModel, model)
    if run is not None:
        read_input(RunRecord, run)
    if evaluation is not None:
        read_input(EvaluationSummary, evaluation)


@app.command()
def sam2(
    context: typer.Context,
    out: OutArgument = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Checkpoint or safetensors file; none: the packaged nano."),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="nano, tiny, small, base_plus or large.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="2.0 or 2.1, of an official size.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Input sizes in pixels, such as 256,512,1024.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", help="manifest.json for the gates of other precisions."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML with the keys of --print-config.")
    ] = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write SAM-2 as ONNX graphs that passed their gates: OUT/bundle.json."""
    from sssflow.export.config import Sam2ExportConfig

    given = {"size": size, "version": version, "weights": weights, "precision": precision}
    options = {f"--{k}": f"{k}={json.dumps(str(v))}" for k, v in given.items() if v is not None}
    options |= {"--sizes": f"sizes_px=[{sizes}]"} if sizes is not None else {}
    chosen = load_config(Sam2ExportConfig, config, settings or (), options=options)
    if print_config:
        show_config(chosen)
        return
    out = need(out, "OUT", "the folder for the bundle")
    listed = ", ".join(str(side) for side in chosen.sizes_px)
    does = f"writes SAM-2 {chosen.size} for {listed} px ({chosen.precision}) behind gates"
    reads = {"weights": weights} if weights is not None else {}
    reads |= {"dataset": dataset} if dataset is not None else {}
    from sssflow.cli.inputs import check_weights, read_input
    from sssflow.contracts.dataset import DatasetManifest

    checks: list[Callable[[], object]] = [
        partial(check_weights, chosen.size, chosen.weights, "--weights")
    ]
    if dataset is not None:
        checks.append(partial(read_input, DatasetManifest, dataset))
    plan = Plan("export sam2", does, out, reads, checks=checks)
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.export import sam2_stage

    with working("export"):
        bundle = sam2_stage.run(chosen, out, dataset=dataset)
    facts = {"graphs": len(bundle.graphs), "gates": f"{len(bundle.gates)} passed"}
    infer = ["sssflow", "infer", "MANIFEST", "PROMPTS", "MASKS"]
    keys = {
        "backend": "onnx",
        "size": chosen.size,
        "version": chosen.version,
        "input_size": chosen.sizes_px[0],
        "onnx.bundle": out,
    }
    for key, value in keys.items():
        infer += ["--set", f"sam.{key}={value}"]
    finish(out / "bundle.json", facts, [quoted(*infer)])
