"""The experiment that the cluster tests run: phantom hearts, nano SAM-2, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_site import TRITON_SERVICE, PipelineSite, install_triton

from sssflow.storage.places import open_place, push_tree

MODELS = [
    *("sam2_encoder", "sam2_decoder", "sam2_memory_attention", "sam2_memory_encoder"),
    "sam2_predict",
]
STUDENT: dict[str, Any] = {
    "network": {"base_channels": 8, "levels": 3},
    "preprocessing": {"size_hw": [64, 64]},
    "threads": 1,
    "batch_labelled": 4,
    "batch_unlabelled": 4,
    "eval_every": 50,
}
EXPERIMENT: dict[str, Any] = {
    "name": "cluster",
    "ingest": {"layout": "acdc", "split": {"labelled": 2, "validation": 1, "test": 1}},
    "warmup": {"method": "supervised", "steps": 150, **STUDENT},
    "baseline": {"method": "supervised", "steps": 150, **STUDENT},
    "adapt": {"steps": 0},
    "train": {"method": "sss", "steps": 60, "checkpoint_every_steps": 5, **STUDENT},
    "evaluate": {"bootstrap_resamples": 100, "permutation_flips": 100},
    "pipeline": {"shards": 2},
}


def sam(bundle: str, url: str) -> dict[str, Any]:
    return {
        "backend": "triton",
        "input_size": 64,
        "onnx": {"bundle": bundle},
        "triton": {"url": url},
    }


def make_scans(site: PipelineSite) -> Path:
    """24 phantom hearts in a folder here."""
    from sssflow.ingest.phantoms.config import HeartConfig, PhantomConfig
    from sssflow.ingest.phantoms.stage import run

    hearts = HeartConfig(in_plane_px=(64, 72), slices=(12, 14))
    run(PhantomConfig(patients=24, seed=3, hearts=hearts), site.folder / "scans")
    return site.folder / "scans"


def serve_graphs(site: PipelineSite, triton_image: str, values: dict[str, Any]) -> Path:
    """Nano SAM-2 as ONNX graphs, here and in S3; the chart's Triton serves them from there."""
    from sssflow.export import sam2_stage
    from sssflow.export.config import Sam2ExportConfig

    folder = site.folder / "sam2"
    sam2_stage.run(Sam2ExportConfig(sizes_px=(64,)), folder)
    push_tree(folder, open_place(f"{site.uri}/sam2"))
    install_triton(site, triton_image, folder, MODELS, values)
    return folder


def submit(site: PipelineSite, host: str, *arguments: str) -> str:
    """Submit the experiment on the scans and graphs in S3, with SAM-2 on the chart's Triton."""
    url = f"grpc://{TRITON_SERVICE}.{site.namespace}.svc.cluster.local:8001"
    there = ("--data", f"{site.uri}/scans", "--triton", url)
    experiment = {**EXPERIMENT, "sam": sam(f"{site.uri}/sam2", url)}
    return site.submit(host, experiment, *there, *arguments)
