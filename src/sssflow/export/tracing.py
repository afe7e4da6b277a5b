"""From a module of PyTorch to an ONNX graph that knows nothing of the machine it was made on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from sssflow.errors import InternalError


def trace(
    module: nn.Module,
    example: tuple[Tensor, ...],
    free_axes: Sequence[Any],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    what: str,
) -> ModelProto:
    """A module in evaluation mode as one ONNX graph; equal weights give equal bytes.

    Args:
        module: What is exported.
        example: Inputs; no free axis may have length 1, which the exporter takes for a constant.
        free_axes: For each input its free axes, as `torch.export` takes them.
        inputs: Names.
        outputs: Names.
        opset: ONNX operator set.
        what: Named in an error.

    Raises:
        InternalError: The exporter or ONNX's own checker refuses the graph.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(free_axes),
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise InternalError("The ONNX exporter gave no graph.")
        graph: ModelProto = program.model_proto
        _forget_the_machine(graph)
        onnx.checker.check_model(graph, full_check=True)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise InternalError(
            "The model cannot be exported to ONNX.",
            where=what,
            found=str(e)[:1000],
            action="Please report it with the versions of sssflow and torch.",
        ) from e
    return graph


def _forget_the_machine(model: ModelProto) -> None:
    parts = [model, model.graph, *model.graph.node, *model.graph.value_info]
    parts += [*model.graph.input, *model.graph.output, *model.graph.initializer]
    for function in model.functions:
        parts += [function, *function.node, *function.value_info]
    for part in parts:
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecations out of the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
