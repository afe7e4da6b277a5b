"""The environment of the local server: Triton for CPU from the package index, made once.

The server comes with `nvidia-pytriton`. Its Python stub fails with numpy 2 and links libpython, so
it lives in a virtual environment of its own, on Python 3.11 or 3.12.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sssflow.errors import InternalError, UnavailableError
from sssflow.storage.atomic import write_text
from sssflow.storage.digest import sha256_file
from sssflow.storage.lock import locked

_LOG = logging.getLogger(__name__)
_SHIPPED = Path(__file__).parents[1] / "_requirements"
_CHECKOUT = Path(__file__).parents[3] / "requirements"
_STAMP = "sssflow-triton.json"
_PYTHONS = ("python3.11", "python3.12")
_INSTALL_TIMEOUT_S = 1200.0
_ASK = (
    "import json, sys, sysconfig; print(json.dumps([list(sys.version_info[:2]), "
    "sysconfig.get_config_var('LIBDIR') or '', sysconfig.get_path('purelib')]))"
)


@dataclass(frozen=True)
class TritonEnvironment:
    """Where the parts of an installed server are.

    Attributes:
        binary: The server.
        backends: Folder with the Python backend and the stub of this Python.
        python: Interpreter that the Python models run on.
        libraries: Folders that the loader must search, in order.
    """

    binary: Path
    backends: Path
    python: Path
    libraries: tuple[Path, ...]


def lock_file() -> Path:
    """The locked requirements that came with the package (or lie in its checkout).

    Raises:
        InternalError: The package is incomplete.
    """
    for folder in (_SHIPPED, _CHECKOUT):
        if (folder / "triton.txt").is_file():
            return folder / "triton.txt"
    raise InternalError(
        "The locked requirements of the server are missing from the package.",
        where=_SHIPPED,
        action="Install the package again.",
    )


def ensure(folder: Path) -> TritonEnvironment:
    """The environment in `folder`; it is made first where it is missing or of another lock.

    Processes that ask at the same time wait for the one that makes it. A killed one leaves no
    stamp, so the next call starts over.

    Raises:
        UnavailableError: No Python 3.11 or 3.12, no network, no space.
    """
    lock = lock_file()
    with locked(folder.with_name(f"{folder.name}.lock")):
        facts = {"lock": sha256_file(lock), "layout": 1}
        stamp = folder / _STAMP
        if not (stamp.is_file() and json.loads(stamp.read_bytes()) == facts):
            _make(folder, lock)
            write_text(stamp, json.dumps(facts))
    return _describe(folder)


def _make(folder: Path, lock: Path) -> None:
    python = _find_python()
    _LOG.info("installing Triton's server for CPU into %s (about 80 MB to fetch)", folder)
    shutil.rmtree(folder, ignore_errors=True)
    _call([python, "-m", "venv", str(folder)], "The environment of the server cannot be made.")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    words = ["install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:"]
    _call([*pip, *words, "-r", str(lock)], "Triton's server cannot be installed.")
    found = _describe(folder)
    server = found.binary.parents[1]
    stub = server / "python_backend_stubs" / _version_of(folder) / "triton_python_backend_stub"
    found.backends.joinpath("python").mkdir(parents=True)
    for source in (*(server / "backends" / "python").iterdir(), stub):
        (found.backends / "python" / source.name).symlink_to(source)


def _describe(folder: Path) -> TritonEnvironment:
    python = folder / "bin" / "python"
    _, libraries, site = _ask(str(python))
    packages = Path(site)
    return TritonEnvironment(
        binary=packages / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        backends=folder / "backends",
        python=python,
        libraries=(packages / "nvidia_pytriton.libs", Path(libraries)),
    )


def _version_of(folder: Path) -> str:
    major, minor = _ask(str(folder / "bin" / "python"))[0]
    return f"{major}.{minor}"


def _ask(python: str) -> tuple[list[int], str, str]:
    version, libraries, site = json.loads(_call([python, "-c", _ASK], "Python does not run."))
    return version, libraries, site


def _find_python() -> str:
    """This interpreter if it fits, else one from the PATH that runs and fits."""
    for name in (sys.executable, *_PYTHONS):
        path = shutil.which(name)
        if path is None:
            continue
        try:
            version, _, _ = _ask(path)
        except UnavailableError:
            continue  # a shim of a version manager that cannot run
        if tuple(version) in {(3, 11), (3, 12)}:
            return path
    raise UnavailableError(
        "Triton's server for CPU needs Python 3.11 or 3.12.",
        expected=" or ".join(_PYTHONS),
        found=f"this is {sys.version_info[0]}.{sys.version_info[1]}, and none on the PATH",
        action="Install one of them.",
    )


def _call(words: list[str], what: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - our own words, no shell
            words, capture_output=True, text=True, check=True, timeout=_INSTALL_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UnavailableError(
            what,
            where=words[0],
            found=str(said).strip()[-600:],
            action="Check the network, the space left and the package index; then try again.",
        ) from None
    return done.stdout
