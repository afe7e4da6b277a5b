"""How fast PCSW is, as a ratio to its literal description in the same run.

Volume: 40 x 512 x 512, five classes of three ellipsoids each, 0.2 % of the voxels replaced by
random labels (speckle). Both forms run on one thread and must agree; the fast one is the best of
several runs, the literal one runs once. Processor time, so that a busy machine counts less.

Run: python benchmarks/pcsw.py [--out benchmarks/results/pcsw.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "unit" / "prompts"))

from literal_pcsw import literal_prompts  # noqa: E402 - it lives with the tests

from sssflow.contracts.prompts import ObjectPrompts  # noqa: E402
from sssflow.prompts.config import PcswConfig  # noqa: E402
from sssflow.prompts.pcsw import select_prompts  # noqa: E402
from sssflow.prompts.slice_graph import build_slice_graph  # noqa: E402
from sssflow.storage.atomic import write_text  # noqa: E402

SHAPE = (40, 512, 512)
NAMES = ("background", "a", "b", "c", "d", "e")
SPECKLE = 0.002
T = TypeVar("T")
CONFIGS = {
    "recommended": PcswConfig(),
    "recommended, box only": PcswConfig(point="none"),
    "tau 0.3, best over all lengths": PcswConfig(tau=0.3, best_over="all"),
    "fragment": PcswConfig(preset="fragment"),
}


def make_volume(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    s, h, w = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    labels = np.zeros(SHAPE, np.uint8)
    for k in range(1, len(NAMES)):
        for _ in range(3):
            at = rng.uniform([8, 80, 80], [32, 432, 432])
            radius = rng.uniform([8, 40, 40], [18, 110, 110])
            distance = sum(
                ((axis - a) / r) ** 2 for axis, a, r in zip((s, h, w), at, radius, strict=True)
            )
            labels[distance < 1] = k
    speckled = rng.random(SHAPE) < SPECKLE
    labels[speckled] = rng.integers(0, len(NAMES), int(speckled.sum()))
    return labels


def timed(function: Callable[[], T], repeats: int) -> tuple[T, float, float]:
    """Result, best processor time and best wall time in seconds."""
    cpu, wall = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        result = function()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return result, min(cpu), min(wall)


def measure(
    labels: np.ndarray, config: PcswConfig
) -> tuple[tuple[ObjectPrompts, ...], list[float]]:
    fast, fast_cpu, fast_wall = timed(
        lambda: select_prompts(labels, config, class_names=NAMES), repeats=7
    )
    literal, literal_cpu, literal_wall = timed(
        lambda: literal_prompts(labels, config, NAMES), repeats=1
    )
    if fast != literal:
        raise SystemExit("the two forms disagree; no speed is worth reporting")
    return fast, [fast_cpu, fast_wall, literal_cpu, literal_wall]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "pcsw.md")
    out = parser.parse_args().out
    labels = make_volume(seed=0)
    nodes = build_slice_graph(labels, 26).node_area.size
    rows = []
    for name, config in CONFIGS.items():
        found, (fast_cpu, fast_wall, literal_cpu, literal_wall) = measure(labels, config)
        passed = sum(item.accepted for item in found)
        rows.append(
            f"| {name} | {passed} of {len(found)} | {fast_cpu:.3f} | {fast_wall:.3f} "
            f"| {literal_cpu:.1f} | {literal_wall:.1f} | {literal_cpu / fast_cpu:.0f} |"
        )
        print(rows[-1], flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, report(labels, nodes, rows))


def report(labels: np.ndarray, nodes: int, rows: list[str]) -> str:
    today = datetime.now(UTC).date().isoformat()
    load = os.getloadavg()[0]
    return "\n".join(
        [
            "# PCSW: fast against literal",
            "",
            f"{today}, {platform.machine()} processor, {os.cpu_count()} cores, load {load:.1f} "
            f"at its end, Python {platform.python_version()}, one thread.",
            "",
            f"Volume {' x '.join(map(str, labels.shape))}, {len(NAMES) - 1} classes, "
            f"{100 * (labels > 0).mean():.0f} % foreground, {100 * SPECKLE:g} % speckle, "
            f"{nodes} slice components. Seconds; the fast form is the best of 7, the literal form "
            "(tests/unit/prompts/literal_pcsw.py: scipy, one labelling per class and window) runs "
            "once. Both gave equal prompts. The ratio is that of processor time.",
            "",
            "| setting | classes with a window | fast, cpu s | fast, wall s | literal, cpu s "
            "| literal, wall s | ratio |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Made by `python benchmarks/pcsw.py`.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
