"""What the cluster tests start from: a cluster, and images that lie in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cluster_tools import Cluster, build_sync_image, connect, load_image


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of KUBECONFIG, else the kit's, or a skip with the reason."""
    found = connect()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def triton_image(cluster: Cluster) -> str:
    """A Triton image: SSSFLOW_TEST_TRITON_IMAGE, else the kit's stand-in."""
    named = os.environ.get("SSSFLOW_TEST_TRITON_IMAGE")
    image = named or "nvcr.io/nvidia/tritonserver:stand-in-py3"
    if not named:
        load_image(cluster, image)
    return image


@pytest.fixture(scope="session")
def sync_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with `sssflow serve sync`: SSSFLOW_TEST_PIPELINE_IMAGE, else one built here."""
    named = os.environ.get("SSSFLOW_TEST_PIPELINE_IMAGE")
    if named:
        return named
    if shutil.which("docker") is None:
        pytest.skip("no SSSFLOW_TEST_PIPELINE_IMAGE, and no docker to build an image with")
    image = "sssflow-sync:test"
    folder: Path = tmp_path_factory.mktemp("image")
    build_sync_image(cluster, folder, image)
    load_image(cluster, image)
    return image
