"""The wheel carries what `sssflow demo` needs anywhere, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_the_demo_the_pipeline_the_weights_and_the_licence(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        pipeline = archive.read("sssflow/_pipelines/sss_training.yaml")
    for needed in (
        "sssflow/py.typed",
        "sssflow/cli/demo.yaml",
        "sssflow/sam/weights/nano.safetensors",
        "sssflow/evaluation/report/template/report.html",
    ):
        assert needed in names
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]
    assert pipeline == (ROOT / "pipelines" / "sss_training.yaml").read_bytes()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"sssflow"}
    assert wheel.stat().st_size < 12_000_000
