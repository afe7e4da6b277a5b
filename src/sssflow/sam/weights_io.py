"""SAM-2 weights: official checkpoints and safetensors in, half-precision safetensors out."""

from __future__ import annotations

import json
import re
import struct
from argparse import Namespace
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sssflow.errors import DataError, UsageError
from sssflow.sam.config import SamSize
from sssflow.storage.atomic import write_bytes, write_text

# Width of the first Hiera stage and number of its blocks tell the sizes apart.
_SIZE_OF_TRUNK: Final = {
    (96, 12): "tiny",
    (96, 16): "small",
    (112, 24): "base_plus",
    (144, 48): "large",
    (32, 7): "nano",
}
_SHOWN = 5
# A zip file, or the pickle of torch's older form: what torch.load may read.
_BEGINNINGS: Final = (b"PK", b"\x80")
_SHOWN_BYTES = 32
# What torch's unpickler ends in on damaged bytes, beside its own error.
_DAMAGED: Final = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def packaged_weights() -> Path:
    """The nano weights that ship with sssflow.

    Raises:
        UsageError: They are not in this installation.
    """
    path = Path(str(resources.files("sssflow.sam") / "weights" / "nano.safetensors"))
    if not path.is_file():
        raise UsageError(
            "The packaged nano SAM-2 weights are missing.",
            where=path,
            action="Install sssflow again, or make them with `sssflow sam2 pretrain`.",
        )
    return path


def weights_path(size: SamSize, given: str | None, *, where: str = "sam.weights") -> Path:
    """The file to load for `size`.

    Args:
        size: Of the model.
        given: What the user named; None: nothing.
        where: The setting or option that names the file, for the message.

    Raises:
        UsageError: An official size without a file, or the packaged weights are missing.
    """
    if given is not None:
        return Path(given)
    if size == "nano":
        return packaged_weights()
    raise UsageError(
        f"SAM-2 {size} needs a checkpoint.",
        where=where,
        expected="the path of an official .pt file or of a safetensors file",
        action="Download the checkpoint of this size from the SAM-2 repository and give its path "
        f"as {where}.",
    )


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Put the weights of `path` into `model`; all or nothing, half precision becomes single.

    Args:
        model: From `build_sam2`.
        path: `.safetensors`, or a PyTorch file that holds `{"model": state}` as the official ones.

    Raises:
        DataError: The file is missing, is no weights file, holds code, or its keys or shapes are
            not those of the model; the message names the first few and the size it looks like.
    """
    state, own = read_state(path), model.state_dict()
    put_state(
        model,
        state,
        path,
        expected=f"SAM-2 {guess_size(own)}",
        looks_like=f"SAM-2 {guess_size(state)}",
    )


def put_state(
    model: torch.nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    expected: str,
    looks_like: str,
) -> None:
    """Put tensors that were read from `path` into `model`; all or nothing.

    Raises:
        DataError: Names or shapes are not those of the model; the first few are named.
    """
    own = model.state_dict()
    problems = _differences(own, state)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            "The weights do not fit the model.",
            where=path,
            expected=f"{expected}: {len(own)} tensors",
            found=f"{'; '.join(problems[:_SHOWN])}{more}; the file looks like {looks_like}",
            action="Choose the size and version that the file is for, or another file.",
        )
    model.load_state_dict({name: state[name].to(t.dtype) for name, t in own.items()})


def read_state(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a weights file; never runs code from it.

    Raises:
        DataError: Missing, unreadable, or not such a file.
    """
    if not path.is_file():
        raise DataError(
            "The weights are missing.", where=path, action="Check the path of the weights."
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _require_checkpoint(path)
    try:
        # SAM-Med3D's training kept its arguments in the file: a Namespace is plain attributes.
        with torch.serialization.safe_globals([Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise DataError(
            "The checkpoint holds more than tensors and is refused.",
            where=path,
            expected="tensors by name, and plain values",
            found=_foreign(error),
            action="Use the official checkpoint, or ask its author for safetensors.",
        ) from None
    except _DAMAGED as error:
        raise _unreadable(path, _first_line(error)) from None
    state = loaded
    if isinstance(loaded, dict):
        state = loaded.get("model", loaded.get("model_state_dict", loaded))
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(
            "The checkpoint is not a table of tensors.",
            where=path,
            expected="{'model': {name: tensor}} or {'model_state_dict': {name: tensor}}",
            found=type(state).__name__,
        )
    return dict(state)


def save_weights(path: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Write half-precision weights and, beside them, `<name>.json` with the same provenance."""
    text = json.dumps(provenance, sort_keys=True)
    tensors = {name: t.detach().to(torch.float16).contiguous() for name, t in state.items()}
    write_bytes(path, save(tensors, metadata={"provenance": text}))
    write_text(path.with_suffix(".json"), json.dumps(provenance, indent=2, sort_keys=True) + "\n")


def guess_size(state: Mapping[str, Tensor]) -> str:
    """Which size a table of tensors looks like; `unknown` if none."""
    patch = state.get("image_encoder.trunk.patch_embed.proj.weight")
    if patch is None:
        return "unknown"
    prefix = "image_encoder.trunk.blocks."
    blocks = {k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)}
    return _SIZE_OF_TRUNK.get((int(patch.shape[0]), len(blocks)), "unknown")


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [f"missing {name}" for name in expected if name not in found]
    extra = [f"unexpected {name}" for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(t.shape)}"
        for name, t in expected.items()
        if name in found and found[name].shape != t.shape
    ]
    return [*shapes, *missing, *extra]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, _first_line(error)) from None


def _require_checkpoint(path: Path) -> None:
    """Refuse what is no checkpoint by its first bytes: a saved web page is no code to warn of."""
    try:
        with path.open("rb") as file:
            head = file.read(_SHOWN_BYTES)
    except OSError as error:
        raise _unreadable(path, _first_line(error)) from None
    if not head.startswith(_BEGINNINGS):
        shown = repr(head.decode("ascii", "backslashreplace"))
        raise _unreadable(path, f"a file that begins with {shown}" if head else "an empty file")


def _foreign(error: UnpicklingError) -> str:
    """What torch refused; its own words advise to load the file unsafely and are not passed on."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else "another kind of object"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unreadable(path: Path, found: str) -> DataError:
    return DataError(
        "The weights cannot be read.",
        where=path,
        expected="a safetensors file or a PyTorch checkpoint",
        found=found,
        action="Get the file again; it may be damaged, or a page that was saved in its place.",
    )
