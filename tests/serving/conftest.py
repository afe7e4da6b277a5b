"""A real Triton for CPU, with nano SAM-2 and a small student in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tools.prepare_tests import TRITON_ENVIRONMENT

from sssflow.contracts.dataset import DatasetManifest, Grid, LabelledCase, Modality, Role
from sssflow.contracts.model import IntensityRule, Preprocessing
from sssflow.errors import UnavailableError
from sssflow.serving import local_triton, repository
from sssflow.serving.client import TritonClient
from sssflow.serving.config import ClientConfig, RepositoryConfig
from sssflow.serving.environment import TritonEnvironment, ensure
from sssflow.serving.local_triton import ServerState
from sssflow.storage.contracts import save_contract
from sssflow.volume.packed import write_packed

ROOT = Path(__file__).resolve().parents[2]
# The contract of SAM-2's back ends and its cases stand with the tests of that room.
sys.path.append(str(ROOT / "tests" / "unit" / "sam"))

SIZE_PX = 128
CPU = RepositoryConfig(threads=1)


@pytest.fixture(scope="session")
def triton_environment() -> TritonEnvironment:
    """The server's environment, installed once per checkout and lock, or a skip with the reason."""
    try:
        return ensure(TRITON_ENVIRONMENT)
    except UnavailableError as error:
        pytest.skip(error.describe())


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.json` of a small student with random weights; `bundle/bundle.json` lies beside it."""
    from sssflow.export import stage
    from sssflow.export.config import ExportConfig
    from sssflow.networks.config import NetworkConfig
    from sssflow.networks.registry import build_network
    from sssflow.networks.trained import Provenance, save_model

    root = tmp_path_factory.mktemp("student")
    image = np.random.default_rng(7).normal(size=(3, 20, 24)).astype(np.float32)
    grid = Grid(
        shape_shw=image.shape,
        spacing_shw_mm=(8.0, 1.0, 1.0),
        affine_ras=tuple(tuple(float(a == b) for b in range(4)) for a in range(4)),
    )
    case = LabelledCase(
        case_id="a",
        patient_id="a",
        image=write_packed(root / "images" / "a.b2nd", image, base=root),
        label=write_packed(root / "labels" / "a.b2nd", np.zeros(image.shape, np.uint8), base=root),
        grid=grid,
        modality=Modality.MR,
        role=Role.LABELLED,
    )
    manifest = DatasetManifest(
        name="noise",
        source_layout="test",
        class_names=("background", "ring", "disc"),
        source_digest="0" * 64,
        split_rule="all labelled",
        cases=(case,),
    )
    save_contract(manifest, root / "manifest.json")
    network = NetworkConfig(base_channels=4, levels=3)
    save_model(
        root,
        build_network(network, manifest.class_count, seed=3).state_dict(),
        network,
        Preprocessing(size_hw=(16, 24), intensity=IntensityRule(kind="percentile")),
        Provenance(manifest.class_names, manifest.digest, "supervised", 5),
    )
    stage.run(ExportConfig(), root / "model.json", root / "manifest.json", root / "bundle")
    return root / "model.json"


@pytest.fixture(scope="session")
def student_bundle(student: Path) -> Path:
    return student.parent / "bundle" / "bundle.json"


@pytest.fixture(scope="session")
def served(
    tmp_path_factory: pytest.TempPathFactory, nano_bundle: Path, student_bundle: Path
) -> Path:
    """A repository of all seven models."""
    out = tmp_path_factory.mktemp("served")
    repository.run(CPU, out, sam2=nano_bundle / "bundle.json", segmenter=student_bundle)
    return out


@pytest.fixture(scope="session")
def server(
    triton_environment: TritonEnvironment, served: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerState]:
    """The server that all tests of a process ask; none stops or changes it."""
    state = tmp_path_factory.mktemp("server")
    yield local_triton.up(triton_environment, served, state)
    local_triton.down(state, exit_timeout_s=5)


@pytest.fixture(params=["grpc", "http"])
def client(server: ServerState, request: pytest.FixtureRequest) -> Iterator[TritonClient]:
    """A client by each transport, that asks once only."""
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with TritonClient(ClientConfig(url=url, patience_s=0)) as found:
        yield found


@pytest.fixture
def own_server(
    triton_environment: TritonEnvironment, student_bundle: Path, tmp_path: Path
) -> Iterator[Callable[..., ServerState]]:
    """Start a server of one's own on `tmp_path/live` (the student only); it may be broken."""
    state = tmp_path / "state"
    repository.run(CPU, tmp_path / "live", segmenter=student_bundle)

    def start(**options: object) -> ServerState:
        return local_triton.up(
            triton_environment,
            tmp_path / "live",
            state,
            options=local_triton.ServerOptions(exit_timeout_s=5, **options),
            timeout_s=60,
        )

    yield start
    local_triton.down(state, exit_timeout_s=5)
