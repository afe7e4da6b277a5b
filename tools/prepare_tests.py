"""Get what the tests need beside the environment: `python -m tools.prepare_tests`.

Helm, an S3 server and Triton's own environment are found or made once, here, where minutes are no
matter, and not inside a test with its time limit. What cannot be had is said and left out: its
tests then skip with the same reason.
"""

from __future__ import annotations

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


def main() -> None:
    """Prepare each thing, and say how long it took."""
    _prepare("helm", HELM.path)
    _prepare("an S3 server", VERSITYGW.path)
    _prepare("Triton's environment", lambda: ensure(TRITON_ENVIRONMENT))


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
