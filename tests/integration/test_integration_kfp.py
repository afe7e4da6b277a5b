"""The pipeline on a real KFP server: KFP_HOST, or the one that is found in the cluster."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from cluster_study import make_scans, serve_graphs, submit
from cluster_tools import Cluster
from pipeline_site import PipelineSite, add_secret

from sssflow.storage.places import open_place, push_tree

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(5400)]

SECRET = "sssflow-test-keys"  # noqa: S105 - its name
SERVICE = "ml-pipeline"
NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Backend:
    """A KFP server, the namespace in which its runs are pods, and our part of the store.

    Attributes:
        site: Scans, results and Triton, in a namespace of our own.
        host: Address of the server's API.
        namespace: Where the server runs the pods.
    """

    site: PipelineSite
    host: str
    namespace: str

    def submit(self, *arguments: str) -> str:
        return submit(self.site, self.host, "--secret", SECRET, *arguments)

    def pipeline(
        self, verb: str, run_id: str, *arguments: str, expected: tuple[int, ...] = (0,)
    ) -> str:
        """What a verb says of a run."""
        where = ("pipeline", verb, run_id, *arguments, "--host", self.host)
        return self.site.sssflow(*where, expected=expected, timeout_s=3000)

    def watch(self, run_id: str, *, expected: tuple[int, ...] = (0,)) -> str:
        return self.pipeline("watch", run_id, "-n", self.namespace, expected=expected)

    def user_pods(self, run_id: str) -> list[dict[str, Any]]:
        """Pods of a run in which a task of ours ran; KFP's drivers are none."""
        label = f"pipeline/runid={run_id}"
        found = self.site.cluster.get("-n", self.namespace, "pods", "-l", label)["items"]
        images = [{c["image"] for c in pod["spec"]["containers"]} for pod in found]
        ours = self.site.image
        return [pod for pod, named in zip(found, images, strict=True) if ours in named]


def server_in(cluster: Cluster) -> str:
    """Namespace of the KFP server in the cluster; empty if there is none."""
    services = cluster.get("services", "-A", f"--field-selector=metadata.name={SERVICE}")["items"]
    return str(services[0]["metadata"]["namespace"]) if services else ""


@pytest.fixture(scope="module")
def host(cluster: Cluster) -> Iterator[str]:
    named = os.environ.get("KFP_HOST")
    namespace = "" if named else server_in(cluster)
    if named:
        yield named
    elif namespace:
        with cluster.port_forward(namespace, f"service/{SERVICE}", 8888) as port:
            yield f"http://127.0.0.1:{port}"
    else:
        pytest.skip(f"no KFP_HOST, and no service {SERVICE} in the cluster")


@pytest.fixture(scope="module")
def backend(host: str, site: PipelineSite, triton_image: str) -> Iterator[Backend]:
    """The server with the store's keys in its namespace, scans in S3, and Triton beside it."""
    if "@" not in site.image:
        pytest.skip("SSSFLOW_TEST_PIPELINE_IMAGE is not named by digest, as a submission must be")
    namespace = os.environ.get("SSSFLOW_TEST_KFP_NAMESPACE") or server_in(site.cluster)
    found = Backend(site, host, namespace or "kubeflow")
    push_tree(make_scans(site), open_place(f"{site.uri}/scans"))
    clients = [{"namespaceSelector": {"matchLabels": {NAME: found.namespace}}}]
    serve_graphs(site, triton_image, {"networkPolicy": {"clients": clients}})
    add_secret(site, SECRET, site.store.keys, namespace=found.namespace)
    yield found
    site.cluster.kubectl("-n", found.namespace, "delete", "secret", SECRET)


@pytest.fixture(scope="module")
def first(backend: Backend) -> str:
    """A run that is watched to its end; its ID."""
    run_id = backend.submit()
    said = backend.watch(run_id)
    for name in ("ingest", "train-warmup", "train-headline", "export-onnx"):
        assert re.search(rf"{name}: succeeded", said), said
    return run_id


def test_the_doctor_finds_the_server_the_store_and_the_keys(backend: Backend) -> None:
    where = ("--host", backend.host, "--namespace", backend.namespace, "--secret", SECRET)
    store = ("--store", f"{backend.site.uri}/store")
    # The account of a given server's runs may have another name: its rights are not judged here.
    said = backend.site.sssflow("pipeline", "doctor", *where, *store, expected=(0, 69))
    for name in ("KFP API", "KFP version", "object store", "Kubernetes API", "namespace", "secret"):
        assert re.search(rf"^{name} +ok", said, re.M), said


def test_a_run_ends_with_a_report_a_model_and_its_records(
    backend: Backend, first: str, tmp_path: Path
) -> None:
    assert len(backend.user_pods(first)) >= 10
    out = tmp_path / "out"
    backend.pipeline("fetch", first, str(out))
    assert (out / "report.html").stat().st_size > 10_000
    assert len(list(out.glob("bundle/*.onnx"))) == 1


def test_the_same_submission_again_is_all_cache(
    backend: Backend, first: str, tmp_path: Path
) -> None:
    second = backend.submit()
    backend.watch(second)
    assert backend.user_pods(second) == []
    for run_id in (first, second):
        backend.pipeline("fetch", run_id, str(tmp_path / run_id))
    reports = [(tmp_path / run_id / "report.html").read_bytes() for run_id in (first, second)]
    assert reports[0] == reports[1]


def test_changed_scans_are_not_served_stale_and_a_cancelled_run_is_resumed(
    backend: Backend, first: str
) -> None:
    del first  # its results are in KFP's cache
    site = backend.site
    brighten_a_voxel(site.folder / "scans")
    push_tree(site.folder / "scans", open_place(f"{site.uri}/scans"))
    run_id = backend.submit()
    until = time.monotonic() + 300
    while not backend.user_pods(run_id):
        assert time.monotonic() < until, "no task of the run has begun"
        time.sleep(1)
    backend.pipeline("cancel", run_id)
    backend.watch(run_id, expected=(75,))
    said = backend.pipeline("resume", run_id)
    again = re.search(r"run (\S+)\s", said.partition("resumed")[2].partition(": ")[2])
    assert again is not None, said
    backend.watch(again[1])


def brighten_a_voxel(scans: Path) -> None:
    """Change the first scan by one grey level in one voxel."""
    file = sorted(f for f in scans.rglob("*.nii.gz") if not f.name.endswith("_gt.nii.gz"))[0]
    image = nibabel.load(file)
    voxels = np.asanyarray(image.dataobj).copy()
    voxels.flat[0] += 1
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), file)
