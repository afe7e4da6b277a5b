"""Find Helm, or build it from its Go module: prints the path of the binary.

Looked for in this order: the `helm` in PATH, the cluster kit beside the repository, the build of an
earlier call in the user's cache folder. Else `go install` builds it there (two to four minutes).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "v3.19.5"
MODULE = f"helm.sh/helm/v3/cmd/helm@{VERSION}"
ROOT = Path(__file__).resolve().parents[1]
BUILD_TIMEOUT_S = 1500


class HelmUnavailableError(Exception):
    """Helm is not there and cannot be built; the message says why."""


def helm_path() -> Path:
    """Path of a Helm 3 binary.

    Raises:
        HelmUnavailableError: None was found, and Go is missing or the build failed.
    """
    found = shutil.which("helm")
    if found and _is_helm_3(Path(found)):
        return Path(found)
    built = _cache() / f"helm-{VERSION}" / "helm"
    for candidate in (*_of_kit(), built):
        if candidate.is_file() and _is_helm_3(candidate):
            return candidate
    return _build(built)


def _of_kit() -> list[Path]:
    """Where the cluster kit keeps its tools, if there is a kit."""
    settings = ROOT.parent / "shared" / "cluster" / "lib" / "common.sh"
    if not settings.is_file():
        return []
    command = ["bash", "-c", '. "$0" && printf %s "$BIN"', str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603
    return [Path(done.stdout) / "helm"] if done.stdout else []


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sssflow"


def _is_helm_3(binary: Path) -> bool:
    command = [str(binary), "version", "--template", "{{.Version}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.startswith("v3.")


def _build(target: Path) -> Path:
    go = shutil.which("go")
    if go is None:
        raise HelmUnavailableError(f"no helm in PATH, and no Go to build {MODULE} with")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Test processes start side by side: one builds, the others wait for it.
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            stamp = f"-s -w -X helm.sh/helm/v3/internal/version.version={VERSION}"
            environment = {**os.environ, "GOBIN": folder, "CGO_ENABLED": "0", "GOFLAGS": ""}
            command = [go, "install", "-trimpath", "-buildvcs=false", "-ldflags", stamp, MODULE]
            try:
                # Away from the repository: a go.mod around it must not matter.
                subprocess.run(  # noqa: S603
                    command,
                    cwd=folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=BUILD_TIMEOUT_S,
                )
            except subprocess.CalledProcessError as error:
                reason = error.stderr.strip().splitlines()[-1:] or ["no message"]
                raise HelmUnavailableError(f"go install {MODULE} failed: {reason[0]}") from None
            except subprocess.TimeoutExpired:
                took = f"took longer than {BUILD_TIMEOUT_S} s"
                raise HelmUnavailableError(f"go install {MODULE} {took}") from None
            (Path(folder) / "helm").replace(target)
    return target


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{helm_path()}\n")
    except HelmUnavailableError as error:
        sys.exit(str(error))
