"""A GPU that is not there: values stay on the processor, the rules are those of a second device.

Inside `pretended()` the device `meta` computes for real, and what a GPU would refuse is refused:
operators whose tensors lie on two devices, an index or a mask on the GPU into a tensor beside it,
a generator of the other device, numpy without `.cpu()`. `launches` counts the operators that ran
on it, `waits` those for which the processor has to wait for it.

It tells nothing about speed or rounding. What only real hardware can show (kernels that are
missing, memory, streams) is left to real hardware.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from sssflow.networks.device import choose_device

DEVICE = torch.device("meta")
"""Torch's only device without hardware whose gradients it computes; here it holds values."""

_CPU = torch.device("cpu")
_MAY_CROSS = ("aten::copy_", "aten::_to_copy")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique")
_FREE = ("aten::detach", "aten::view", "aten::_unsafe_view", "aten::expand", "aten::alias",
         "aten::permute", "aten::transpose", "aten::t", "aten::unsqueeze", "aten::squeeze",
         "aten::slice", "aten::select", "aten::split", "aten::split_with_sizes", "aten::unbind",
         "aten::as_strided", "aten::empty", "aten::empty_like", "aten::empty_strided",
         "aten::new_empty", "aten::new_empty_strided")  # fmt: skip


class TwoDevicesError(AssertionError):
    """Something that a real GPU would refuse."""


class OnGpu(torch.Tensor):
    """A tensor that says it is on the pretended GPU; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # saved, and loaded with `map_location="cpu"`

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class PretendGenerator(torch.Generator):
    """A generator of the pretended GPU, or of the processor."""

    said: torch.device

    def __new__(cls, device: object = _CPU) -> PretendGenerator:
        made = super().__new__(cls, device=_CPU)
        made.said = torch.device(device)  # type: ignore[arg-type]
        return made

    def __init__(self, device: object = _CPU) -> None:
        del device

    @property
    def device(self) -> torch.device:
        return self.said

    def manual_seed(self, seed: int) -> PretendGenerator:
        super().manual_seed(seed)
        return self


class _Calls(TorchFunctionMode):
    """What is seen above the dispatcher alone.

    Random numbers come from a generator of the device that they are made on (further down the
    generator is another object each time); `torch.tensor` copies to a device past every mode.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": _CPU}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnGpu):
            return torch.tensor(*args[1:], dtype=args[0].dtype, **kwargs).to(DEVICE)
        out = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and isinstance(out, torch.Tensor):
            if out.device != generator.device:
                raise TwoDevicesError(
                    f"{func.__name__}: generator on {generator.device}, values on {out.device}"
                )
        return out


class PretendGpu(TorchDispatchMode):
    """Inside, `torch.device("meta")` is a GPU with values."""

    launches: Counter[str]
    waits: Counter[str]
    current: ClassVar[PretendGpu | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        parts, _ = tree_flatten((args, kwargs))
        if kwargs.get("device") == DEVICE or any(isinstance(part, OnGpu) for part in parts):
            return _compute(func, args, kwargs)
        return func(*args, **kwargs)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    parts, _ = tree_flatten((args, kwargs))
    here = [part for part in parts if isinstance(part, OnGpu)]
    target = kwargs.get("device")
    on_gpu = bool(here) if target is None else torch.device(target) == DEVICE
    _require_one_device(func, name, args, parts, on_gpu=on_gpu)
    _count(name, args, crossing=bool(here) != on_gpu, on_gpu=on_gpu)
    if target is not None:
        kwargs = {**kwargs, "device": _CPU}
    if name == "aten::copy_":
        on_gpu = isinstance(args[0], OnGpu)
    wrapped = {id(part.held): part for part in here}
    args, kwargs = tree_map(_held, (args, kwargs))
    out = func(*args, **kwargs)
    if name == "aten::_to_copy" and not on_gpu:
        return out
    return tree_map(lambda part: _on_gpu(part, wrapped) if on_gpu else part, out)


def _held(part: object) -> object:
    return part.held if isinstance(part, OnGpu) else part


def _on_gpu(part: object, wrapped: dict[int, OnGpu]) -> object:
    if not isinstance(part, torch.Tensor):
        return part
    return wrapped.get(id(part)) if id(part) in wrapped else OnGpu(part)


def _require_one_device(func: Any, name: str, args: Any, parts: Any, *, on_gpu: bool) -> None:
    if name in _MAY_CROSS:
        return
    if name in _INDEXED and isinstance(args[0], OnGpu):
        if any(isinstance(p, torch.Tensor) and _has_no_values(p) for p in parts):
            raise TwoDevicesError(f"{name}: a list as index is made past every mode")
        parts = [args[0], *args[2:]]  # an index from the processor is taken along
    small = torch.Tag.pointwise in func.tags or name in _INDEXED
    other = [
        part
        for part in parts
        if isinstance(part, torch.Tensor)
        and not isinstance(part, OnGpu)
        and not (small and part.dim() == 0)
    ]
    if on_gpu and other:
        shapes = [tuple(part.shape) for part in other]
        raise TwoDevicesError(f"{name}: tensors of the processor among the GPU's, shapes {shapes}")


def _has_no_values(part: torch.Tensor) -> bool:
    return part.device == DEVICE and not isinstance(part, OnGpu)


def _count(name: str, args: Any, *, crossing: bool, on_gpu: bool) -> None:
    gpu = PretendGpu.current
    if gpu is None:
        return
    masked = name in _INDEXED and any(
        isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        for index in args[1]
    )
    if name == "aten::copy_":
        crossing = isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu)
    if name in _WAITS or masked or (crossing and name in _MAY_CROSS):
        gpu.waits[f"{name} at {_caller()}"] += 1
    elif on_gpu and name not in _FREE:
        gpu.launches[name] += 1


def _caller() -> str:
    """The innermost line of this package on the stack."""
    frame = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if "/sssflow/" in file:
            return f"{file.rpartition('/sssflow/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


@contextmanager
def pretended() -> Iterator[PretendGpu]:
    """Every stage that may choose its device computes on the pretended GPU inside."""
    autocast = torch.autocast

    def autocast_here(kind: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if kind == DEVICE.type else kind, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", autocast_here)
        # In inference mode composite operators would come here whole, and views not at all.
        patch.setattr(
            torch._C, "_InferenceMode", lambda on: torch.no_grad() if on else nullcontext()
        )
        patch.setattr("sssflow.training.loop.Generator", PretendGenerator)
        for name in [name for name in sys.modules if name.startswith("sssflow.")]:
            if getattr(sys.modules[name], "choose_device", None) is choose_device:
                patch.setattr(f"{name}.choose_device", lambda *_args, **_kwargs: DEVICE)
        # `parameter.data = moved` would leave the values that a wrapper holds as they were.
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with PretendGpu() as gpu, _Calls():
                PretendGpu.current = gpu
                yield gpu
        finally:
            PretendGpu.current = None
            torch.__future__.set_overwrite_module_params_on_conversion(before)
