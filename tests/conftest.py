"""What every test starts from: one compute thread, fixed seeds, and the development scans."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools.go_tool import GoTool, ToolUnavailableError
from tools.helm import HELM
from tools.prepare_tests import VERSITYGW

from s3_server import ACCESS_KEY, REGION, SECRET_KEY, Server, s3_server

ROOT = Path(__file__).resolve().parent.parent

# Test processes run side by side: one compute thread each, and none that waits by spinning. This
# stands before the first import of torch, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _fixed_start() -> None:
    """Every test starts from the same seeds, whatever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)
    # Tests of plain data do not pay for importing torch.
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        torch.manual_seed(0)


def _development_scans(name: str) -> Path:
    """The folder of development scans, or a skip that says what was looked for."""
    named = os.environ.get("SSSFLOW_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not (folder / name).is_dir():
        pytest.skip(f"needs the development scans: no {name}/ in SSSFLOW_TEST_DATA or shared/data")
    return folder / name


@pytest.fixture(scope="session")
def real_acdc() -> Path:
    """ACDC in the SSL4MIS form: data/, train_slices.list, val.list."""
    return _development_scans("ACDC")


@pytest.fixture(scope="session")
def real_la() -> Path:
    """Left atrium, mri_norm2.h5 per scan."""
    return _development_scans("LA")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano SAM-2 as gated ONNX graphs for 128 px; made once for all test processes of a run."""
    from sssflow.export import sam2_stage
    from sssflow.export.config import Sam2ExportConfig

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "nano_bundle"
    if not folder.is_dir():
        own = tmp_path_factory.mktemp("nano_bundle_of_this_process")
        sam2_stage.run(Sam2ExportConfig(sizes_px=(128,)), own)
        with contextlib.suppress(OSError):  # another process was faster, with equal bytes
            own.rename(folder)
    return folder


@pytest.fixture(scope="session")
def helm() -> Path:
    """The real Helm, built from its Go module where it is not there, or a skip with the reason."""
    return _tool_or_skip(HELM)


@pytest.fixture(scope="session")
def versitygw() -> Path:
    """A real S3 server over a folder, found or built like Helm, or a skip with the reason."""
    return _tool_or_skip(VERSITYGW)


def _tool_or_skip(tool: GoTool) -> Path:
    try:
        return tool.path()
    except ToolUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(versitygw: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running S3 server with the bucket `bucket`."""
    with s3_server(versitygw, tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's keys in the environment, and nothing of the machine's own set-up."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
