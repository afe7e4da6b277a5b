"""A namespace prepared for pipelines: object store, both charts, Triton with nano SAM-2."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster_tools import ROOT, SECURITY, Cluster, image_values
from object_store import REGION, ObjectStore
from pod_runner import PodOrder

from sssflow.contracts.sam2_graphs import SAM2_BUNDLE_FILE
from sssflow.pipeline.results import Gathered, collect
from sssflow.pipeline.store import Store, program_digest
from sssflow.pipeline.submission import Placement, spec_for
from sssflow.storage.places import open_place, push_tree

BUCKET = "pipelines"
SECRET = "s3-credentials"  # noqa: S105 - its name
TRITON_SERVICE = "sam2-sam2-triton"
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class PipelineSite:
    """Where compiled pipelines run as pods."""

    cluster: Cluster
    helm: Path
    namespace: str
    image: str
    store: ObjectStore
    folder: Path
    uri: str

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check)

    def install(self, release: str, chart: str, values: dict[str, Any]) -> None:
        """Install or upgrade a chart, and wait until it is ready."""
        file = self.folder / f"{release}.yaml"
        file.write_text(yaml.safe_dump(values), "utf-8")
        where = ["upgrade", "--install", release, str(ROOT / "charts" / chart)]
        wait = ["-n", self.namespace, "-f", str(file), "--wait", "--timeout=300s"]
        self.cluster.run(str(self.helm), *where, *wait, timeout_s=400)

    def keys(self, prefix: str) -> list[str]:
        """Keys of the objects below a prefix of this site's part of the bucket."""
        import boto3

        bucket, _, root = self.uri.removeprefix("s3://").partition("/")
        pages = boto3.client("s3").get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=bucket, Prefix=f"{root}/{prefix}")
        return sorted(item["Key"] for page in found for item in page.get("Contents", ()))

    def uninstall(self, release: str) -> None:
        where = ["uninstall", release, "-n", self.namespace, "--wait"]
        self.cluster.run(str(self.helm), *where, timeout_s=300)

    def start(
        self, run: str, parameters: dict[str, Any], *, ir: Path, **placement: Any
    ) -> PipelineRun:
        """Begin a run of a compiled pipeline; `placement` are fields of `Placement`."""
        given = Placement(image=by_digest(self.image), **{"secret": SECRET, **placement})
        return self.launch(run, spec_for(ir, given), parameters)

    def launch(self, run: str, spec: dict[str, Any], parameters: dict[str, Any]) -> PipelineRun:
        """Begin a run of what a submission sends; the nodes have the image by its tag."""
        folder = self.folder / run
        folder.mkdir()
        ir_path = folder / "ir.yaml"
        text = yaml.safe_dump_all([spec["pipeline_spec"], spec["platform_spec"]])
        ir_path.write_text(text.replace(by_digest(self.image), self.image), "utf-8")
        order = PodOrder(
            ir_path=str(ir_path),
            parameters=parameters,
            pipeline_root=str(folder / "kfp"),
            result_path=str(folder / "outputs.json"),
            namespace=self.namespace,
            run=run,
            outputs_uri=f"{self.uri}/outputs",
            security=SECURITY,
            # What carries the outputs of a task to S3 needs the store as well.
            environment={"AWS_ENDPOINT_URL": self.store.pod_endpoint, **REGION, **THREADS},
        )
        path = folder / "order.json"
        path.write_text(json.dumps(asdict(order)), "utf-8")
        log = (folder / "run.log").open("wb")
        python = [sys.executable, str(Path(__file__).with_name("pod_runner.py")), str(path)]
        process = subprocess.Popen(python, env=self.environment, stdout=log, stderr=log)
        log.close()
        return PipelineRun(self, run, folder, process)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a command here reaches the cluster and the store."""
        return {**self.cluster.environment, **self.store.environment}

    def sssflow(
        self, *arguments: str, expected: tuple[int, ...] = (0,), timeout_s: float = 1200
    ) -> str:
        """What `sssflow` says; AssertionError if it ends with none of the expected exit codes."""
        command = [sys.executable, "-m", "sssflow.cli", *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        said = done.stdout + done.stderr
        assert done.returncode in expected, f"{arguments}: exit {done.returncode}\n{said[-6000:]}"
        return said

    def submit(self, host: str, experiment: dict[str, Any], *arguments: str) -> str:
        """`sssflow pipeline submit` to a server; the ID of the run."""
        file = self.folder / f"experiment-{uuid.uuid4().hex[:8]}.yaml"
        file.write_text(yaml.safe_dump(experiment), "utf-8")
        said = self.sssflow(
            *("pipeline", "submit", "--host", host, "--config", str(file)),
            *("--image", by_digest(self.image), "--store", f"{self.uri}/store"),
            *("--s3-endpoint", self.store.pod_endpoint, *arguments),
        )
        found = re.search(r"submitted run (\S+)", said)
        assert found is not None, said
        return found[1]


@dataclass(frozen=True)
class PipelineRun:
    """One run of a pipeline, as it goes on."""

    site: PipelineSite
    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    def outputs(self, timeout_s: float = 1200) -> dict[str, str]:
        """Wait for the end; the pipeline's outputs; AssertionError with its log if it failed."""
        try:
            code = self.process.wait(timeout=timeout_s)
        finally:
            self.stop()
        assert code == 0, self.log()[-6000:]
        found: dict[str, str] = json.loads((self.folder / "outputs.json").read_text("utf-8"))
        return found

    def result(self, store_uri: str = "") -> Gathered:
        """Wait for the end; what the run ended with, brought here from its store and verified."""
        outputs = self.outputs()
        store = Store(store_uri or f"{self.site.uri}/store", program=program_digest())
        with contextlib.closing(store):
            return collect(outputs, self.folder / "results", store=store)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return (self.folder / "run.log").read_text("utf-8", errors="replace")

    def pods(self, task: str = "") -> list[dict[str, Any]]:
        """Pods of the run, or of one of its tasks, oldest first."""
        label = f"sssflow-test/run={self.name}"
        label += f",sssflow-test/task={task}" if task else ""
        where = ("-n", self.site.namespace, "pods", "-l", label)
        found = self.site.cluster.get(*where, "--sort-by=.metadata.creationTimestamp")["items"]
        return list(found)

    def until(self, what: str, check: Any, timeout_s: float = 600) -> Any:
        """Whatever `check()` gives as soon as that is true; the run must still be going on."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            found = check()
            if found:
                return found
            ended = f"the run ended before: {what}\n{self.log()[-4000:]}"
            assert self.process.poll() is None, ended
            time.sleep(0.3)
        raise AssertionError(f"not within {timeout_s} s: {what}")

    def running_pods(self, task: str) -> list[str]:
        """Names of the task's running pods."""
        pods = self.pods(task)
        return [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]

    def pod_log(self, name: str) -> str:
        return self.site.kubectl("logs", name, check=False)


def by_digest(image: str) -> str:
    """The image as a submission must name it; nodes that got it by tag know no digest of it."""
    return image if "@" in image else f"{image.rpartition(':')[0]}@sha256:{'0' * 64}"


def make_site(
    cluster: Cluster, helm: Path, store: ObjectStore, image: str, folder: Path
) -> Iterator[PipelineSite]:
    """A restricted namespace with the chart sssflow and the store's keys; gone afterwards."""
    with cluster.namespace() as namespace:
        uri = f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"
        site = PipelineSite(cluster, helm, namespace, image, store, folder, uri)
        add_secret(site, SECRET, store.keys)
        site.install(
            "runs",
            "sssflow",
            {
                "s3": {"existingSecret": SECRET, "endpointUrl": store.pod_endpoint},
                "limitRange": {
                    "enabled": True,
                    "defaultRequest": {"cpu": "50m", "memory": "256Mi"},
                    "default": {"cpu": "2", "memory": "4Gi"},
                },
            },
        )
        yield site
    _empty(site)


def _empty(site: PipelineSite) -> None:
    """Delete this site's part of the bucket."""
    import boto3

    client = boto3.client("s3")
    for key in site.keys(""):
        client.delete_object(Bucket=BUCKET, Key=key)


def add_secret(site: PipelineSite, name: str, data: dict[str, str], namespace: str = "") -> None:
    """A Secret of the site's namespace, or of another one."""
    made = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace or site.namespace},
        "stringData": data,
    }
    site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(made))


def install_triton(
    site: PipelineSite,
    image: str,
    bundle: Path,
    models: Sequence[str],
    values: dict[str, Any],
) -> None:
    """Write the model repository to S3, and let the chart's Triton serve it from there.

    `values` are further values of the chart.
    """
    from sssflow.serving import repository
    from sssflow.serving.config import RepositoryConfig

    folder = site.folder / f"repository-{len(models)}"
    config = RepositoryConfig(profile="cpu", threads=1)
    made = repository.run(config, folder, sam2=bundle / SAM2_BUNDLE_FILE)
    uri = f"{site.uri}/{folder.name}"
    push_tree(folder, open_place(uri))
    small = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    wanted = {
        "image": image_values(image),
        "sync": {"image": image_values(site.image), "resources": small},
        "models": list(models),
        "readinessModel": "sam2_predict",
        "modelRepository": {
            "type": "s3",
            "digest": made.digest,
            "s3": {"uri": uri, "endpointUrl": site.store.pod_endpoint, "existingSecret": SECRET},
        },
        "resources": {
            "requests": {"cpu": "100m", "memory": "512Mi"},
            "limits": {"cpu": "2", "memory": "3Gi"},
        },
        "server": {"responseCacheMiB": 64, "drainSeconds": 1, "exitTimeoutSeconds": 5},
        "probes": {"startupSeconds": 280, "periodSeconds": 2},
        "podSecurity": {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001},
    }
    site.install("sam2", "sam2-triton", {**wanted, **values})
