"""A Triton model that runs one ONNX graph with ONNX Runtime on the CPU.

For servers without an onnxruntime backend, such as the one in `nvidia-pytriton`. The tensors are
those of the graph. Parameters: `threads` (of one request).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import onnxruntime


class TritonPythonModel:
    """The graph `model.onnx` beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph; an unreadable one makes the model unavailable."""
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        self._inputs = [entry["name"] for entry in config["input"]]
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        # Sessions that wait by spinning take the cores from each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pb = self._pb
        wanted = list(request.requested_output_names())
        try:
            feeds = {
                name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs
            }
            found = self._session.run(wanted, feeds)
        except Exception as error:  # one bad request must not take the model down
            reason = f"the graph refused the tensors: {type(error).__name__}: {error}"
            code = pb.TritonError.INVALID_ARG
            return pb.InferenceResponse([], pb.TritonError(reason[:500], code))
        tensors = [pb.Tensor(name, value) for name, value in zip(wanted, found, strict=True)]
        return pb.InferenceResponse(tensors)
