"""The prompted SAM-2 in ONNX Runtime, from a bundle that `sssflow export sam2` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.sam2_graphs import SAM2_BUNDLE_FILE, GraphName, Sam2Bundle
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.networks.device import choose_device
from sssflow.sam.config import OnnxConfig, SamConfig
from sssflow.sam.graph_promptable import Arrays, GraphPromptable
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import sha256_file, verified_path


class OnnxRunner:
    """`GraphRunner` on ONNX Runtime sessions; a graph is loaded when it is first run."""

    def __init__(
        self,
        files: Mapping[GraphName, Path],
        *,
        threads: int = 0,
        spinning: bool = False,
        device: str = "cpu",
    ) -> None:
        """Name the files.

        Args:
            files: Path of each graph of one input size.
            threads: Threads of each graph; 0: one per core.
            spinning: Let idle threads spin: a little faster alone, much slower beside others.
            device: `auto`, `cpu`, or `cuda` with an optional number.

        Raises:
            UsageError: ONNX Runtime is not installed, or the device is neither.
            UnavailableError: This ONNX Runtime has no CUDA.
        """
        self._files = dict(files)
        self._runtime = require_runtime()
        self._providers = _providers(self._runtime, device)
        self._options = self._runtime.SessionOptions()
        self._options.intra_op_num_threads = threads
        flag = "1" if spinning else "0"
        self._options.add_session_config_entry("session.intra_op.allow_spinning", flag)
        # It warns of initialisers that it folds away; errors are raised all the same.
        self._options.log_severity_level = 3
        self._sessions: dict[GraphName, Any] = {}

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `GraphRunner.run`."""
        session = self.session(graph)
        names = [output.name for output in session.get_outputs()]
        given = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        return dict(zip(names, session.run(names, given), strict=True))

    def session(self, graph: GraphName) -> Any:
        """The `InferenceSession` of a graph.

        Raises:
            DataError: ONNX Runtime cannot load the file.
        """
        if graph not in self._sessions:
            path = self._files[graph]
            try:
                self._sessions[graph] = self._runtime.InferenceSession(
                    str(path), self._options, providers=self._providers
                )
            except Exception as error:  # its exceptions share no base class but this
                raise DataError(
                    "ONNX Runtime cannot load a graph.",
                    where=path,
                    found=str(error)[:500],
                    action="Export it again, or use an ONNX Runtime that is as new.",
                ) from error
        return self._sessions[graph]


def load_onnx_promptable(config: SamConfig) -> GraphPromptable:
    """The backend on the bundle that the configuration names; every digest is checked.

    Raises:
        UsageError: No bundle is named, it is of another model or size, or of other weights than
            those given; or ONNX Runtime is not installed.
        DataError: A file is missing or changed.
        UnavailableError: The device is not there.
    """
    bundle = read_bundle(config)
    folder = _local_folder(config.onnx)
    files = {
        graph.graph: verified_path(graph.file, base=folder)
        for graph in bundle.graphs
        if graph.size_px == config.input_size
    }
    settings = config.onnx
    runner = OnnxRunner(
        files, threads=settings.threads, spinning=settings.spinning, device=config.device
    )
    return GraphPromptable(
        runner,
        bundle.rules,
        backend="onnx",
        model_digest=bundle.digest,
        input_size=config.input_size,
    )


def read_bundle(config: SamConfig) -> Sam2Bundle:
    """The bundle that the configuration names, held against it; its graphs are not read.

    Raises:
        UsageError: None is named, or it is of another model, input size or weights.
        DataError: It cannot be read.
        UnavailableError: It lies in S3, and the store cannot be used now.
    """
    settings: OnnxConfig = config.onnx
    if settings.bundle is None:
        raise UsageError(
            f"The backend {config.backend} needs exported graphs.",
            where="sam.onnx.bundle",
            expected="the folder that `sssflow export sam2` wrote, or where it lies in S3",
            action="Run `sssflow export sam2 OUT` and set sam.onnx.bundle to OUT.",
        )
    bundle = _load(settings.bundle)
    wanted = [f"SAM-2 {config.version} {config.size}", f"input size {config.input_size}"]
    found = [f"SAM-2 {bundle.sam2_version} {bundle.variant}"]
    found += [f"input size {config.input_size if _has(bundle, config) else bundle.sizes_px()}"]
    if config.weights is not None:
        wanted.append(f"weights {sha256_file(_weights_file(config.weights))[:12]}")
        found.append(f"weights {bundle.weights_sha256[:12]}")
    if wanted != found:
        raise UsageError(
            "The exported graphs are not those of the configuration.",
            where=settings.bundle,
            expected=", ".join(wanted),
            found=", ".join(found),
            action="Set sam.size, sam.version and sam.input_size to the bundle's, or export again "
            "from these weights.",
        )
    return bundle


def graphs_input(config: SamConfig) -> dict[str, str]:
    """What a result of this configuration is known by beside settings and weights.

    A path says nothing of the graphs that lie there: without their digest, graphs that were
    exported again under their old name would give the old result. Empty for the backend torch.

    Raises:
        The errors of `read_bundle`.
    """
    return {} if config.backend == "torch" else {"graphs": read_bundle(config).digest}


def _load(folder: str) -> Sam2Bundle:
    if not folder.startswith("s3://"):
        return load_contract(Sam2Bundle, Path(folder) / SAM2_BUNDLE_FILE)
    from sssflow.storage.places import open_place  # boto3 is needed for addresses in S3 alone

    data = open_place(folder).get_bytes(SAM2_BUNDLE_FILE)
    where = f"{folder.rstrip('/')}/{SAM2_BUNDLE_FILE}"
    if data is None:
        raise DataError(
            "There is no bundle of SAM-2 graphs here.",
            where=where,
            action="Copy it there with `sssflow data push FOLDER ADDRESS`, or correct the address.",
        )
    return Sam2Bundle.from_json(data, where=where)


def _local_folder(settings: OnnxConfig) -> Path:
    """Where the graphs lie that this process is to load."""
    folder = settings.bundle or ""
    if folder.startswith("s3://"):
        raise UsageError(
            "The backend onnx loads its graphs from a folder of this machine.",
            where="sam.onnx.bundle",
            found=folder,
            action="Copy the bundle here first, or set sam.backend to triton.",
        )
    return Path(folder)


def _has(bundle: Sam2Bundle, config: SamConfig) -> bool:
    return config.input_size in bundle.sizes_px()


def _weights_file(given: str) -> Path:
    path = Path(given)
    if not path.is_file():
        raise DataError(
            "The SAM-2 weights are missing.", where=path, action="Check the path `sam.weights`."
        )
    return path


def require_runtime() -> Any:
    """The module `onnxruntime`.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "This needs ONNX Runtime.",
            found=error,
            action="pip install 'sssflow[cpu]' (or 'sssflow[gpu]').",
        ) from None
    return onnxruntime


def _providers(runtime: Any, device: str) -> list[Any]:
    has_cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
    if device == "auto":
        # A build with CUDA names it also on a machine without a GPU.
        device = choose_device(device).type if has_cuda else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind != "cuda" or (number and not number.isdigit()):
        raise UsageError(
            "There is no such device.",
            where="sam.device",
            expected="auto, cpu, cuda or cuda:<n>",
            found=device,
        )
    if not has_cuda:
        raise UnavailableError(
            "This ONNX Runtime has no CUDA.",
            where="sam.device",
            found=", ".join(runtime.get_available_providers()),
            action="pip install 'sssflow[gpu]', or set sam.device to auto or cpu.",
        )
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
