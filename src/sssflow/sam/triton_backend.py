"""The prompted SAM-2 on a Triton server: the graphs run there, everything else here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.sam2_graphs import GraphName, Sam2Bundle, graph_tensors
from sssflow.sam.config import SamConfig
from sssflow.sam.graph_promptable import Arrays, GraphPromptable
from sssflow.sam.onnx_backend import read_bundle
from sssflow.serving.client import TritonClient


class TritonRunner:
    """`GraphRunner` on the models `sam2_<graph>` of a server."""

    def __init__(self, client: TritonClient, bundle: Sam2Bundle, input_size: int) -> None:
        """Name the server and the bundle that it serves."""
        self._client = client
        sizes = (input_size, bundle.width, bundle.memory_width)
        self._outputs = {
            graph.graph: [tensor.name for tensor in graph_tensors(graph.graph, *sizes)[1]]
            for graph in bundle.graphs
        }

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `GraphRunner.run`."""
        found = self._client.infer(f"sam2_{graph}", inputs, self._outputs[graph])
        return {name: np.asarray(value) for name, value in found.items()}


def load_triton_promptable(config: SamConfig) -> GraphPromptable:
    """The backend on the server and the bundle that the configuration names.

    The bundle says which SAM-2 is served; `sssflow serve check` proves that the server does.

    Raises:
        UsageError: No bundle is named, it is of another model, size or weights, or tritonclient
            is not installed.
        DataError: The bundle cannot be read.
        UnavailableError: The server is not there, or does not serve the models.
    """
    bundle = read_bundle(config)
    client = TritonClient(config.triton)
    client.wait_ready(f"sam2_{graph.graph}" for graph in bundle.graphs)
    return GraphPromptable(
        TritonRunner(client, bundle, config.input_size),
        bundle.rules,
        backend="triton",
        model_digest=bundle.digest,
        input_size=config.input_size,
    )
