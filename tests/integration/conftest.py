"""What the cluster tests start from: a cluster, and images that lie in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import ROOT, Cluster, build_sync_image, collect_logs, connect, load_image
from object_store import ObjectStore, given_store, own_store
from pipeline_site import BUCKET, PipelineSite, make_site


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any) -> Generator[None, Any, Any]:
    """Keep the logs of all pods of a test that failed, before its namespace goes."""
    report = yield
    found = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(found, Cluster):
        folder = ROOT / "build" / "cluster-logs" / re.sub(r"\W+", "-", item.name)
        report.sections.append(("the pods, and where their logs are", collect_logs(found, folder)))
    return report


WAYS = {
    "test_integration_pipeline.py": "pods without KFP",
    "test_integration_kfp.py": "KFP",
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in the closing lines which ways the pipeline ran."""
    ran = [r.nodeid for r in terminalreporter.stats.get("passed", ()) if r.when == "call"]
    ways = [way for file, way in WAYS.items() if any(f"/{file}::" in test for test in ran)]
    if ways:
        terminalreporter.write_line(f"the pipeline ran by: {', '.join(ways)}")


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


@pytest.fixture(scope="session")
def pipeline_image() -> str:
    """The image of the pipeline's tasks that SSSFLOW_TEST_PIPELINE_IMAGE names; nodes have it."""
    named = os.environ.get("SSSFLOW_TEST_PIPELINE_IMAGE")
    if not named:
        pytest.skip("no SSSFLOW_TEST_PIPELINE_IMAGE; `make test-cluster` builds and loads one")
    return named


@pytest.fixture(scope="session")
def object_store(cluster: Cluster, pipeline_image: str, versitygw: Path) -> Iterator[ObjectStore]:
    """A real S3 server for pods and this process, its keys in the environment, and a bucket."""
    given = given_store()
    with contextlib.ExitStack() as stack:
        found = given or stack.enter_context(own_store(cluster, pipeline_image, versitygw))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in found.environment.items():
            patch.setenv(name, value)
        _make_bucket()
        yield found


def _make_bucket() -> None:
    """Make the tests' bucket if it is not there; a server that has just begun gets a minute."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", config=Config(retries={"mode": "standard", "total_max_attempts": 12})
    )
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def site(
    cluster: Cluster,
    helm: Path,
    pipeline_image: str,
    object_store: ObjectStore,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PipelineSite]:
    """A namespace that pipelines can run in."""
    folder = tmp_path_factory.mktemp("site")
    yield from make_site(cluster, helm, object_store, pipeline_image, folder)
