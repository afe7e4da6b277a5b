"""Find a program that is written in Go, or build it from its module.

Looked for in this order: PATH, the cluster kit beside the repository, the build of an earlier call
in the user's cache folder. Else Go builds it there (some minutes).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD_TIMEOUT_S = 1500


class ToolUnavailableError(Exception):
    """The program is not there and cannot be built; the message says why."""


@dataclass(frozen=True)
class GoTool:
    """A program and where it comes from.

    Attributes:
        name: Of the binary.
        package: What `go install` builds.
        version: Of its module.
        version_variable: Go variable that the build sets to the version; empty for none.
        version_arguments: What makes the program print its version.
        version_prefix: How that print must begin for a binary found elsewhere; empty takes any.
        module: Path of its module. Where it is given the package is built within the module's own
            source, as a module needs it whose versions a proxy does not list.
    """

    name: str
    package: str
    version: str
    version_variable: str
    version_arguments: tuple[str, ...]
    version_prefix: str = ""
    module: str = ""

    def source(self) -> Path:
        """Folder of the module's source, from the module cache or a proxy; read-only.

        Raises:
            ToolUnavailableError: It cannot be had.
        """
        go = shutil.which("go")
        if go is None:
            raise ToolUnavailableError(f"no Go to get the source of {self.name} with")
        command = [go, "mod", "download", "-json", f"{self.module}@{self.version}"]
        try:
            done = subprocess.run(  # noqa: S603
                command, cwd="/", capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise ToolUnavailableError(
                f"{self.module} took longer than {BUILD_TIMEOUT_S} s"
            ) from None
        found = json.loads(done.stdout or "{}")
        if "Dir" not in found:
            reason = found.get("Error", done.stderr.strip())
            raise ToolUnavailableError(f"go mod download {self.module}@{self.version}: {reason}")
        return Path(found["Dir"])

    def path(self) -> Path:
        """Path of the binary.

        Raises:
            ToolUnavailableError: None was found, and Go is missing or the build failed.
        """
        found = shutil.which(self.name)
        built = _cache() / f"{self.name}-{self.version}" / self.name
        there = [Path(found)] if found else []
        for candidate in (*there, *_of_kit(self.name), built):
            if candidate.is_file() and self._runs(candidate):
                return candidate
        return self._build(built)

    def _runs(self, binary: Path) -> bool:
        try:
            done = subprocess.run(  # noqa: S603
                [str(binary), *self.version_arguments], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0 and done.stdout.startswith(self.version_prefix)

    def _build(self, target: Path) -> Path:
        go = shutil.which("go")
        if go is None:
            what = f"no {self.name} in PATH, and no Go to build {self.package} with"
            raise ToolUnavailableError(what)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Test processes start side by side: one builds, the others wait for it.
        with (target.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                self._install(go, target)
        return target

    def _install(self, go: str, target: Path) -> None:
        what = f"{self.package}@{self.version}"
        stamp = f" -X {self.version_variable}={self.version}" if self.version_variable else ""
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            environment = {**os.environ, "GOBIN": folder, "CGO_ENABLED": "0", "GOFLAGS": ""}
            flags = ["-trimpath", "-buildvcs=false", "-ldflags", f"-s -w{stamp}"]
            command = [go, "install", *flags, what]
            if self.module:
                command = [go, "build", *flags, "-o", f"{folder}/{self.name}", self.package]
            try:
                # Away from the repository: a go.mod around it must not matter.
                subprocess.run(  # noqa: S603
                    command,
                    cwd=self.source() if self.module else folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=BUILD_TIMEOUT_S,
                )
            except subprocess.CalledProcessError as error:
                reason = error.stderr.strip().splitlines()[-1:] or ["no message"]
                raise ToolUnavailableError(f"building {what} failed: {reason[0]}") from None
            except subprocess.TimeoutExpired:
                took = f"took longer than {BUILD_TIMEOUT_S} s"
                raise ToolUnavailableError(f"building {what} {took}") from None
            (Path(folder) / self.name).replace(target)


def _of_kit(name: str) -> list[Path]:
    """Where the cluster kit keeps its tools, if there is a kit."""
    settings = ROOT.parent / "shared" / "cluster" / "lib" / "common.sh"
    if not settings.is_file():
        return []
    command = ["bash", "-c", '. "$0" && printf %s "$BIN"', str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603
    return [Path(done.stdout) / name] if done.stdout else []


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sssflow"
