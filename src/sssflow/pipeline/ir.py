"""Compiled pipelines: where they are, and how they are made from a checkout."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sssflow.errors import InternalError, UnavailableError, UsageError
from sssflow.storage.atomic import write_bytes

PIPELINES: Final = {"sss_training": "sss_training"}
"""Module below `pipelines/` to the name of its pipeline function."""

_SHIPPED = Path(__file__).parents[1] / "_pipelines"
_CHECKOUT = Path(__file__).parents[3]

_NEEDS_KFP = "pip install 'sssflow[kfp]'"


def compiled_pipeline(name: str = "sss_training") -> Path:
    """The compiled pipeline that came with the package (or lies in its checkout).

    Raises:
        UsageError: There is no pipeline of that name.
        InternalError: The package is incomplete.
    """
    _require_known(name)
    for folder in (_SHIPPED, _CHECKOUT / "pipelines"):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    raise InternalError(
        "The compiled pipeline is missing from the package.",
        where=_SHIPPED,
        action="Install the package again, or run `make pipelines` in a checkout.",
    )


def compile_pipeline(name: str, target: Path, *, checkout: Path = _CHECKOUT) -> Path:
    """Compile `pipelines/<name>.py` of a checkout to `target`; equal sources give equal bytes.

    Raises:
        UsageError: There is no such pipeline, kfp is not installed, `checkout` holds none, or
            `target` is a folder.
        UnavailableError: `target` cannot be written.
    """
    _require_known(name)
    require_kfp()
    from kfp import compiler

    if not (checkout / "pipelines" / f"{name}.py").is_file():
        raise UsageError(
            "A pipeline is compiled from a checkout of the project.",
            where=checkout,
            expected=f"pipelines/{name}.py",
            action=f"Use the compiled one: {compiled_pipeline(name)}",
        )
    sys.path.insert(0, str(checkout))
    try:
        function = getattr(importlib.import_module(f"pipelines.{name}"), PIPELINES[name])
    finally:
        sys.path.remove(str(checkout))
    draft = target.with_name(f".{target.stem}.draft.yaml")
    try:
        if target.is_dir():
            raise UsageError(
                "A pipeline is compiled to a file, and this is a folder.",
                where=target,
                action=f"Name a file, for example {target / name}.yaml",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            compiler.Compiler().compile(function, str(draft))
            write_bytes(target, draft.read_bytes())
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(
            "The file cannot be written.",
            where=target,
            found=error.strerror,
            action="Choose another file, then run the same command again.",
        ) from None
    return target


def _require_known(name: str) -> None:
    if name not in PIPELINES:
        raise UsageError(
            "There is no such pipeline.",
            expected=" | ".join(sorted(PIPELINES)),
            found=name,
            action="Give one of these names, or none.",
        )


def graphs(ir: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The graphs of a compiled pipeline, that of the whole first: `tasks` has the tasks by key."""
    parts = [ir["root"], *(part for part in ir["components"].values() if "dag" in part)]
    return [part["dag"] for part in parts]


def require_kfp() -> None:
    """Make sure that kfp can be imported.

    Raises:
        UsageError: It is not installed.
    """
    try:
        importlib.import_module("kfp")
    except ImportError as error:
        raise UsageError(
            "Running and compiling pipelines needs kfp.", found=error, action=_NEEDS_KFP
        ) from None
