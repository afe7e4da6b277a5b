"""`sssflow export`: a trained student as ONNX with parity figures and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sssflow.cli.progress import working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    Plan,
    PrintConfigOption,
    SetOption,
    finish,
    need,
    read_experiment,
    show_config,
)


def export(
    context: typer.Context,
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="MANIFEST", show_default=False, help="manifest.json of a dataset."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", show_default=False, help="model.json of a trained run."),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", show_default=False, help="Folder to write to.")
    ] = None,
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
    if not Plan("export", does, out, reads).start(context, dry_run=dry_run):
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
    finish(out / "bundle.json", facts)
