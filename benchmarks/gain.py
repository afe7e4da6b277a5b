"""What the whole flow gains over supervised training, over seeds, by the stages of the package.

For each seed: phantoms (or the given scans) are packed, the warm-up is trained, SAM-2 is adapted
and prompted, the headline starts from the warm-up, and a supervised baseline gets the steps of
both. Models are chosen on validation patients; the measured role is read once, at the end.

    python benchmarks/gain.py CONFIG OUT --seeds 1 2 3 [--source SCANS] [--result FILE.md]

Finished stages in OUT are taken over, so that an interrupted benchmark goes on. `--only` makes
one of the two trainings and no table, so that two processes can share the work.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path

from sssflow.configuration import load_config
from sssflow.contracts.dataset import Role
from sssflow.contracts.evaluation import EvaluationSummary
from sssflow.contracts.run import RunRecord
from sssflow.evaluation import stage as evaluation
from sssflow.experiment import ExperimentConfig
from sssflow.ingest import stage as ingest
from sssflow.ingest.phantoms import stage as phantoms
from sssflow.prompts import stage as prompts
from sssflow.sam import adapt
from sssflow.sam import stage as sam
from sssflow.storage.atomic import write_text
from sssflow.storage.contracts import load_contract
from sssflow.training import stage as training


def experiment(config: Path, seed: int, phantom_seed: int | None) -> ExperimentConfig:
    """The configuration with every seed set."""
    seeds = [f"{section}.seed={seed}" for section in ("warmup", "baseline", "train", "adapt")]
    if phantom_seed is not None:
        seeds.append(f"phantoms.seed={phantom_seed}")
    return load_config(ExperimentConfig, config, seeds)


def dataset(settings: ExperimentConfig, source: Path | None, out: Path) -> Path:
    """Pack the scans, or phantoms drawn for this seed."""
    manifest = out / "dataset" / "manifest.json"
    if not manifest.exists():
        if source is None:
            source = out / "scans"
            phantoms.run(settings.require_phantoms(), source)
        ingest.run(settings.ingest, source, out / "dataset")
    return manifest


def headline(settings: ExperimentConfig, manifest: Path, out: Path) -> list[Path]:
    """Warm-up, adaptation, prompts, masks, training; returns the masks of scored cases too."""
    training.run(settings.warmup, manifest, out / "warmup")
    model = out / "warmup" / "model"
    weights = None
    if settings.adapt.steps:
        weights = out / "sam2" / adapt.ADAPTED_FILE
        if not weights.exists():
            adapt.run(settings.adapt, settings.sam, manifest, out / "sam2")
    found = []
    roles = (Role.UNLABELLED, *settings.pipeline.scored_roles)
    for role in roles:
        asked = settings.prompts.model_copy(update={"roles": (role,)})
        folder = out / role.value
        if not (folder / "masks" / "masks.json").exists():
            prompts.run(asked, manifest, model, folder / "prompts")
            sam.run(
                settings.sam,
                manifest,
                folder / "prompts" / "prompts.json",
                folder / "masks",
                weights=weights,
            )
        found.append(folder)
    training.run(
        settings.train,
        manifest,
        out / "headline",
        masks=[found[0] / "masks" / "masks.json"],
        start=model,
    )
    return found[1:]


def measure(
    settings: ExperimentConfig, manifest: Path, out: Path, scored: list[Path]
) -> EvaluationSummary:
    """The evaluation of baseline and headline, and of SAM-2 against the coarse masks."""
    return evaluation.run(
        settings.evaluate,
        manifest,
        {"supervised": out / "baseline" / "model", settings.train.method: out / "headline/model"},
        out / "evaluation",
        runs={
            "supervised": out / "baseline" / "run.json",
            settings.train.method: out / "headline" / "run.json",
        },
        masks=[folder / "masks" / "masks.json" for folder in scored],
        prompts=[folder / "prompts" / "prompts.json" for folder in scored],
    )


def row(seed: int, settings: ExperimentConfig, out: Path, summary: EvaluationSummary) -> list[str]:
    """One line of the table: both models, gain, SAM-2 against coarse, and what it cost."""
    names = [f"{m.strict['dice'].value:.4f}" for m in summary.models]
    gain, records = summary.gain, [out / n / "run.json" for n in ("baseline", "headline")]
    seconds = [load_contract(RunRecord, path).wall_time_s for path in records]
    masks = "; ".join(
        f"{q.coarse.value:.4f} to {q.sam2.value:.4f}" for q in summary.sam2 if q.coarse is not None
    )
    return [
        str(seed),
        *names,
        f"{100 * gain.gain:+.2f} ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})",
        f"{gain.p_value:.3f}",
        masks or "-",
        " / ".join(f"{settings.training(n).steps}" for n in ("warmup", "train", "baseline")),
        " / ".join(f"{s:.0f}" for s in seconds),
        summary.dataset_digest[:12],
    ]


def page(
    arguments: argparse.Namespace,
    settings: ExperimentConfig,
    rows: list[list[str]],
    summary: EvaluationSummary,
) -> str:
    """The result page."""
    head = ["seed", "supervised", settings.train.method, "gain in points (95 % interval)", "p"]
    head += ["coarse to SAM-2, Dice", "steps: warm-up / headline / baseline"]
    head += ["training s: baseline / headline", "dataset"]
    gains = [float(cells[3].split()[0]) for cells in rows]
    lines = [
        f"# Gain of {settings.train.method} over supervised training: {settings.name}",
        "",
        f"{datetime.datetime.now(tz=datetime.UTC).date()}, {platform.machine()} processor, "
        f"{os.cpu_count()} cores, no GPU; other work ran beside it. Strict mean foreground Dice "
        f"over {summary.cases} {' and '.join(summary.roles)} cases of {summary.patients} patients.",
        f"Split: {summary.split_rule}",
        "Selection: each model's step by the validation patients, mean foreground Dice"
        + (" (the measured ones, so both rows are flattered alike)." if _same(summary) else "."),
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cells) + " |" for cells in rows),
        "",
        f"Mean gain {sum(gains) / len(gains):+.2f} points over {len(gains)} seed(s).",
        f"Interval and test: {summary.gain.test}.",
        "",
        f"Made by `python benchmarks/gain.py {arguments.config} OUT --seeds "
        f"{' '.join(map(str, arguments.seeds))}{' --source SCANS' if arguments.source else ''}`.",
        "",
    ]
    return "\n".join(lines)


def _same(summary: EvaluationSummary) -> bool:
    return "validation" in summary.roles


def main() -> None:
    """Run and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", choices=["baseline", "headline"])
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        settings = experiment(arguments.config, seed, None if arguments.source else seed)
        out = arguments.out / f"seed{seed}"
        manifest = dataset(settings, arguments.source, out)
        scored = []
        if arguments.only != "baseline":
            scored = headline(settings, manifest, out)
        if arguments.only != "headline":
            training.run(settings.baseline, manifest, out / "baseline")
        if arguments.only is None:
            summary = measure(settings, manifest, out, scored)
            rows.append(row(seed, settings, out, summary))
    if rows:
        text = page(arguments, settings, rows, summary)
        print(text)
        if arguments.result:
            write_text(arguments.result, text)


if __name__ == "__main__":
    main()
