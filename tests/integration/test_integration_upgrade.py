"""Two replicas under load, upgraded and killed: no slice fails, is lost, or comes twice."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pytest
from cluster_tools import ROOT
from load_main import SLICES
from test_integration_charts import UNPACK, Site, _pod, site

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
__all__ = ["site"]

SERVICES = ("demo-sam2-triton", "demo-sam2-triton-headless")
VALUES = ("--set", "replicas=2", "--set", "server.drainSeconds=5")
METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8002/metrics").read().decode())
"""


@dataclass(frozen=True)
class Load:
    """A client in a pod that sends volume after volume."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]

    def volumes(self) -> list[dict[str, Any]]:
        """What was finished so far."""
        self.output.seek(0)
        return [json.loads(line) for line in self.output.read().splitlines() if b"}" in line]

    def wait_for(self, more: int) -> None:
        """Until so many more volumes are finished."""
        wanted, end = len(self.volumes()) + more, time.monotonic() + 90
        while len(self.volumes()) < wanted:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, f"no {more} volumes in 90 s"
            time.sleep(0.2)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode()[-2000:]


@contextlib.contextmanager
def _client(site: Site, address: str, volumes: int = 0) -> Iterator[Load]:
    command = ["kubectl", "-n", site.namespace, "exec", "load", "--"]
    command += ["env", "PYTHONPATH=/source/src", "python3", "/source/load_main.py"]
    command += [f"grpc://{address}:8001", str(volumes)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, env=site.cluster.environment, stdout=output, stderr=errors
        )
        try:
            yield Load(process, output, errors)
        finally:
            process.kill()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def served(site: Site, pipeline_image: str) -> Iterator[Site]:
    """Two replicas, and a pod with the client of this checkout."""
    pod = _pod("load", pipeline_image, ["sleep", "900"])
    pod["spec"]["volumes"] = [{"name": "models", "emptyDir": {}}]
    site.cluster.kubectl("-n", site.namespace, "apply", "-f", "-", stdin=json.dumps(pod))
    site.release("install", "sam2-triton", "-f", str(site.values), *VALUES)
    site.kubectl("wait", "--for=condition=Ready", "pod/load", "--timeout=90s")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(ROOT / "src" / "sssflow", "src/sssflow", filter=_code)
        archive.add(ROOT / "tests" / "integration" / "load_main.py", "load_main.py")
    site.cluster.kubectl(
        *("-n", site.namespace, "exec", "-i", "load", "--", "python3", "-c", UNPACK),
        stdin=packed.getvalue(),
    )
    site.kubectl("rollout", "status", "deployment/demo-sam2-triton", "--timeout=180s")
    yield site
    site.uninstall("demo")


def _code(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def _pods(site: Site) -> list[str]:
    """The pods that stay: one that drains is listed by Kubernetes for seconds after its end."""
    chosen = ("pods", "-l", "app.kubernetes.io/instance=demo")
    listed = [pod["metadata"] for pod in site.cluster.get("-n", site.namespace, *chosen)["items"]]
    return [f"pod/{pod['name']}" for pod in listed if "deletionTimestamp" not in pod]


def _answered(site: Site, pod: str) -> float:
    """Requests that a pod has answered."""
    text = site.kubectl("exec", pod, "-c", "triton", "--", "python3", "-c", METRICS)
    return float(re.findall(r'nv_inference_request_success{model="echo"\S* (\d+)', text)[0])


@pytest.mark.parametrize(("service", "pods"), zip(SERVICES, (1, 2), strict=True))
def test_one_client_stays_with_one_pod_and_by_the_headless_service_takes_both(
    served: Site, service: str, pods: int
) -> None:
    before = {pod: _answered(served, pod) for pod in _pods(served)}
    assert len(before) == 2
    with _client(served, service, volumes=1) as load:
        assert load.process.wait(timeout=90) == 0, load.said()
        assert len(load.volumes()) == 1
    more = [_answered(served, pod) - number for pod, number in before.items()]
    assert sum(more) == SLICES
    assert sum(number > 0 for number in more) == pods


def _upgrade(site: Site) -> None:
    """Replace both pods; back when the old ones have drained and are gone."""
    old = _pods(site)
    assert len(old) == 2
    more = ("--set", "server.verbosity=1", "--wait", "--timeout=240s")
    site.release("upgrade", "sam2-triton", "-f", str(site.values), *VALUES, *more)
    site.kubectl("wait", "--for=delete", *old, "--timeout=90s")
    assert len(_pods(site)) == 2
    assert not set(old) & set(_pods(site))


def _kill(site: Site) -> None:
    """Kill one of two serving pods, and wait for the one in its place."""
    killed, stays = _pods(site)
    site.kubectl("delete", killed, "--force", "--grace-period=0")
    site.kubectl("rollout", "status", "deployment/demo-sam2-triton", "--timeout=180s")
    assert stays in _pods(site)
    assert killed not in _pods(site)


def test_no_slice_fails_is_lost_or_comes_twice_while_pods_are_replaced_and_killed(
    served: Site,
) -> None:
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(_client(served, name)) for name in SERVICES]
        marks = [_mark(loads, 3, lambda: None)]
        marks.append(_mark(loads, 1, lambda: _upgrade(served)))
        marks.append(_mark(loads, 3, lambda: _kill(served)))
        served.kubectl("exec", "load", "--", "touch", "/source/stop")
        for load, name, ends in zip(loads, SERVICES, zip(*marks, strict=True), strict=True):
            assert load.process.wait(timeout=90) == 0, load.said()
            volumes = load.volumes()
            assert all(volume["keys"] == list(range(SLICES)) for volume in volumes)
            assert sum(volume["wrong"] for volume in volumes) == 0
            starts = (0, *ends)
            for phase, start, end in zip(("calm", "upgrade", "kill"), starts, ends, strict=False):
                ms = [one for volume in volumes[start:end] for one in volume["ms"]]
                p50, p99 = np.percentile(ms, (50, 99))
                print(f"{name}, {phase}: {len(ms)} slices, {p50:.0f} ms p50, {p99:.0f} ms p99")


def _mark(loads: list[Load], more: int, act: Callable[[], None]) -> list[int]:
    """Do something under load, wait for some volumes after it; how many are finished then."""
    act()
    for load in loads:
        load.wait_for(more)
    return [len(load.volumes()) for load in loads]
