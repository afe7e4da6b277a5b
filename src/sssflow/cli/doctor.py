"""`sssflow doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

import typer
from rich.table import Table

from sssflow.cli.session import console

State = Literal["ok", "note", "missing"]
_GIB = 1 << 30
_LEAST_MEMORY_GIB = 4.0
_LEAST_DISK_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the table; `missing` makes the exit code 69."""

    subject: str
    state: State
    detail: str


def doctor() -> None:
    """Check Python, packages, processor, memory, disk and weights; exit 69 if one is missing."""
    findings = examine(Path.cwd())
    table = Table("what", "state", "detail", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.subject, finding.state, finding.detail)
    console().print(table)
    missing = [finding.subject for finding in findings if finding.state == "missing"]
    if missing:
        console().print(f"missing: {', '.join(missing)}", markup=False)
        raise typer.Exit(69)
    console().print("all there; next: sssflow demo demo")


def examine(folder: Path) -> list[Finding]:
    """All findings; none hides another. `folder` is where results would be written."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _torch,
        _device,
        _threads,
        _memory,
        lambda: _disk(folder),
        lambda: _package("sam2", "SAM-2", needed=True),
        lambda: _package("monai", "MONAI", needed=True),
        lambda: _package("onnx", "ONNX", needed=True),
        lambda: _package("onnxruntime", "ONNX Runtime (extra cpu)", needed=True),
        lambda: _package("kfp", "Kubeflow Pipelines (extra kfp)", needed=True),
        lambda: _package("tritonclient", "Triton client (extra serving)", needed=False),
        _weights,
    )
    return [check() for check in checks]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", "ok" if sys.version_info >= (3, 11) else "missing", version)


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("PyTorch", "missing", str(error))
    return Finding("PyTorch", "ok", str(torch.__version__))


def _device() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", "note", "unknown without PyTorch")
    if not torch.cuda.is_available():
        return Finding("GPU", "note", "none that PyTorch can use; everything runs on the CPU")
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return Finding("GPU", "ok", f"{name}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free")


def _threads() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS", "not set")
    return Finding("cores", "ok", f"{usable} usable; OMP_NUM_THREADS {limit}")


def _memory() -> Finding:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return Finding("memory", "note", "cannot be read on this system")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    free_gib = int(fields["MemAvailable"].split()[0]) / (1 << 20)
    state: State = "ok" if free_gib >= _LEAST_MEMORY_GIB else "note"
    found = f"{free_gib:.1f} GiB free; {_LEAST_MEMORY_GIB} leave the demo room"
    return Finding("memory", state, found)


def _disk(folder: Path) -> Finding:
    free_gib = shutil.disk_usage(folder).free / _GIB
    state: State = "ok" if free_gib >= _LEAST_DISK_GIB else "note"
    return Finding("disk", state, f"{free_gib:.1f} GiB free in {folder}")


def _package(distribution: str, subject: str, *, needed: bool) -> Finding:
    try:
        return Finding(subject, "ok", metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return Finding(subject, "missing" if needed else "note", "not installed")


def _weights() -> Finding:
    subject = "nano SAM-2 weights"
    folder = resources.files("sssflow.sam") / "weights"
    files = (
        [f for f in folder.iterdir() if f.name.endswith(".safetensors")] if folder.is_dir() else []
    )
    if not files:
        return Finding(subject, "missing", "no safetensors file inside the package")
    sizes = (f"{f.name}, {len(f.read_bytes()) / 1e6:.1f} MB" for f in files)
    return Finding(subject, "ok", "; ".join(sizes))
