"""SAM-2 on a Triton server does what PyTorch does, slice by slice and stage by stage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit" / "sam"))

from backend_contract import INPUT_SIZE, BackendContract

from sssflow.errors import UnavailableError
from sssflow.sam.config import OnnxConfig, SamConfig
from sssflow.sam.graph_promptable import GraphPromptable
from sssflow.sam.stage import load_promptable
from sssflow.serving.config import ClientConfig
from sssflow.serving.local_triton import ServerState


def config(bundle: Path, url: str, **changes: object) -> SamConfig:
    return SamConfig(
        backend="triton",
        input_size=INPUT_SIZE,
        onnx=OnnxConfig(bundle=str(bundle)),
        triton=ClientConfig(url=url, **changes),
    )


class TestTriton(BackendContract):
    @pytest.fixture(scope="class")
    def model(self, server: ServerState, nano_bundle: Path) -> GraphPromptable:
        found = load_promptable(config(nano_bundle, server.grpc_url))
        assert found.backend == "triton"
        return found


def test_a_server_that_is_not_there_is_said_before_any_case(nano_bundle: Path) -> None:
    with pytest.raises(UnavailableError):
        load_promptable(config(nano_bundle, "grpc://127.0.0.1:9", patience_s=0))
