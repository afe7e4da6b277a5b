"""What reading the data costs: a training step with real batches against a constant batch.

Draws phantoms, packs them, and times steps of both kinds in turn within one process. CPU seconds
of the process are compared beside wall seconds, because other work on the machine changes the
second only. Run: python benchmarks/loader.py [--steps 12] [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sssflow.contracts.dataset import DatasetManifest
from sssflow.ingest import stage as ingest
from sssflow.ingest.config import IngestConfig, SplitConfig
from sssflow.ingest.phantoms import stage as phantoms
from sssflow.ingest.phantoms.config import PhantomConfig
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.config import TrainConfig
from sssflow.training.data import Batch, read_batch
from sssflow.training.loop import train_step
from sssflow.training.standing import Run

RESULT = Path(__file__).parent / "results" / "loader.md"
TARGET = 1.05


def prepare(folder: Path, method: str, size: int) -> Run:
    manifest = load_contract(DatasetManifest, folder / "packed" / "manifest.json")
    config = TrainConfig.model_validate(
        {
            "method": method,
            "preprocessing": {"size_hw": [size, size]},
            "batch_labelled": 4,
            "batch_unlabelled": 4,
            "sss": {"mask_weight": 0.0},
        }
    )
    run = stage.prepare(config, manifest, folder / "packed", folder / "checkpoints")
    run.method.train_mode()
    return run


def pack_phantoms(folder: Path) -> None:
    phantoms.run(PhantomConfig(patients=8, seed=7), folder / "raw")
    split = SplitConfig(labelled=2, validation=1, test=0)
    ingest.run(IngestConfig(layout="acdc", split=split), folder / "raw", folder / "packed")


def timed(run: Run, steps: range, batch: Batch | None) -> tuple[float, float]:
    """Wall and CPU seconds per step."""
    wall, cpu = time.perf_counter(), time.process_time()
    for step in steps:
        train_step(run, step, batch)
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return (
        (time.perf_counter() - wall) / len(steps),
        (time.process_time() - cpu) / len(steps),
    )


def measure(run: Run, steps: int, repeats: int) -> dict[str, float]:
    config = run.config
    constant = read_batch(
        run.data,
        0,
        labelled=config.batch_labelled,
        unlabelled=config.batch_unlabelled,
        seed=config.seed,
    )
    timed(run, range(2), None)
    real, fixed = [], []
    for i in range(repeats):
        # Who goes first alternates, so that a drift of the machine favours neither.
        for kind in ("real", "fixed") if i % 2 == 0 else ("fixed", "real"):
            block = range(i * steps, (i + 1) * steps)
            (real if kind == "real" else fixed).append(
                timed(run, block, None if kind == "real" else constant)
            )
    real_wall, fixed_wall = (statistics.median(t[0] for t in kind) for kind in (real, fixed))
    real_cpu, fixed_cpu = (statistics.median(t[1] for t in kind) for kind in (real, fixed))
    return {
        "real_ms": 1e3 * real_wall,
        "fixed_ms": 1e3 * fixed_wall,
        "wall_ratio": real_wall / fixed_wall,
        "cpu_ratio": real_cpu / fixed_cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack_phantoms(folder)
        for method in ("supervised", "unimatch_v2", "sss"):
            run = prepare(folder, method, options.size)
            found = measure(run, options.steps, options.repeats)
            rows.append(
                f"| {method} | {found['real_ms']:.0f} | {found['fixed_ms']:.0f} "
                f"| {found['wall_ratio']:.3f} | {found['cpu_ratio']:.3f} |"
            )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        "# Loader: a training step with real data against the same step on a constant batch\n\n"
        f"U-Net 16 to 256 channels, {options.size}x{options.size}, 4 labelled and 4 unlabelled "
        f"slices, one CPU thread, torch {torch.__version__}; median of {options.repeats} blocks "
        f"of {options.steps} steps each, real and constant in turn. Target: ratio at most "
        f"{TARGET}.\n\n"
        "| method | real, ms | constant, ms | ratio of wall time | ratio of CPU time |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        "Both kinds of step draw the same augmentation; the difference is the choice of slices "
        "and their gathering from memory. Again: `python benchmarks/loader.py`.\n",
        encoding="utf-8",
    )
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
