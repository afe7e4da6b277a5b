"""Get what the tests need beside the environment: `python -m tools.prepare_tests [--cluster]`.

Helm, an S3 server and Triton's own environment, and for the tests on a cluster Kubeflow Trainer
and kube-router, are found or made once, here, where minutes are no matter, and not inside a test
with its time limit. What cannot be had is said and left out: its tests then skip with the same
reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.go_tool import GoTool, ToolUnavailableError
from tools.helm import HELM

from sssflow.errors import UnavailableError
from sssflow.serving.environment import ensure

ROOT = Path(__file__).resolve().parents[1]
TRITON_ENVIRONMENT = ROOT / ".venv-triton"

VERSITYGW = GoTool(
    name="versitygw",
    package="github.com/versity/versitygw/cmd/versitygw",
    version="v1.8.0",
    version_variable="main.Version",
    version_arguments=("--version",),
)
JOBSET = GoTool(
    name="jobset",
    package="sigs.k8s.io/jobset",
    version="v0.11.1",
    version_variable="",
    version_arguments=("--help",),
    module="sigs.k8s.io/jobset",
)
TRAINER = GoTool(
    name="trainer-controller-manager",
    package="github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
    version="v2.2.0",
    version_variable="",
    version_arguments=("--help",),
    module="github.com/kubeflow/trainer/v2",
)
KUBE_ROUTER = GoTool(
    name="kube-router",
    package="./cmd/kube-router",
    version="v2.2.1",
    version_variable="",
    version_arguments=("--version",),
    module="github.com/k3s-io/kube-router/v2",
)
"""Enforces NetworkPolicy on the kit's node. k3s's copy, because its versions can be had."""


def main() -> None:
    """Prepare each thing, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="also for the tests on a cluster")
    options = parser.parse_args()
    _prepare("helm", HELM.path)
    _prepare("an S3 server", VERSITYGW.path)
    _prepare("Triton's environment", lambda: ensure(TRITON_ENVIRONMENT))
    if options.cluster:
        _prepare("JobSet", JOBSET.path)
        _prepare("Kubeflow Trainer", TRAINER.path)
        _prepare("kube-router", KUBE_ROUTER.path)


def _prepare(what: str, make: Callable[[], object]) -> None:
    began_s = time.monotonic()
    try:
        make()
    except (ToolUnavailableError, UnavailableError) as error:
        sys.stdout.write(f"tests: without {what}: {error}\n")
    else:
        sys.stdout.write(f"tests: {what}, {time.monotonic() - began_s:.0f} s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
