"""Write a Triton model repository from bundles: one tensor contract, four profiles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sssflow.contracts.base import ObjectRef, Sha256
from sssflow.contracts.bundle import ModelBundle, TensorContract
from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository, ServedModel
from sssflow.contracts.sam2_graphs import GRAPHS, Sam2Bundle, Sam2Graph
from sssflow.errors import DataError, UsageError
from sssflow.serving.config import RepositoryConfig
from sssflow.serving.pbtxt import ModelConfig, WarmUp, to_pbtxt
from sssflow.serving.versions import drop_other_versions
from sssflow.storage.atomic import disk_errors, write_bytes, write_text
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, verified_path

_LOG = logging.getLogger(__name__)
_MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class _Planned:
    """A model before it is written: its config and the files of its version folder."""

    config: ModelConfig
    digest: Sha256
    files: dict[str, Path]


def run(
    config: RepositoryConfig,
    out: Path,
    *,
    sam2: Path | None = None,
    segmenter: Path | None = None,
    size_px: int | None = None,
    version: int = 1,
) -> ModelRepository:
    """Write models and `config.pbtxt` files to `out`, and `repository.json` last.

    Args:
        config: Profile, threads, cache.
        out: Folder; one with a repository already is replaced model by model, and other versions
            of these models are removed.
        sam2: `bundle.json` of exported SAM-2 graphs.
        segmenter: `bundle.json` of an exported student.
        size_px: Which input size of the SAM-2 bundle; None: its only one.
        version: Number of the version folders.

    Raises:
        DataError: A bundle cannot be read, or a file of it is missing or changed.
        UsageError: No bundle, or a size that the bundle does not hold.
        UnavailableError: The disk refuses.
    """
    planned: list[_Planned] = []
    if sam2 is not None:
        planned += _sam2_models(config, sam2, size_px)
    if segmenter is not None:
        planned += _segmenter_models(config, segmenter)
    if not planned:
        raise UsageError(
            "There is nothing to serve.",
            expected="a SAM-2 bundle, a student's bundle, or both",
            action="Give --sam2 BUNDLE or --segmenter BUNDLE.",
        )
    with disk_errors(out):
        # Until all of it is new there is no description: no reader sees a mixture.
        (out / REPOSITORY_FILE).unlink(missing_ok=True)
    served = []
    for item in planned:
        served.append(_write(item, out, version))
        _LOG.info("model %d of %d: %s", len(served), len(planned), item.config.name)
    repository = ModelRepository(profile=config.profile, models=tuple(served))
    save_contract(repository, out / REPOSITORY_FILE)
    return repository


def _sam2_models(config: RepositoryConfig, path: Path, size_px: int | None) -> list[_Planned]:
    bundle = load_contract(Sam2Bundle, path)
    size = _size(bundle, size_px, path)
    present = [name for name in GRAPHS if any(g.graph == name for g in bundle.graphs)]
    graphs = {name: bundle.graph(name, size) for name in present}
    planned = [
        _graph_model(
            config,
            f"sam2_{name}",
            bundle.weights_sha256,
            verified_path(graph.file, base=path.parent),
            graph.inputs,
            graph.outputs,
            warm_ups=_warm_ups(config, graph, size),
            max_batch=config.encoder_batch if name == "encoder" else 0,
            bounded=name == "encoder",
        )
        for name, graph in graphs.items()
    ]
    return [*planned, _predict_model(config, bundle, size)]


def _size(bundle: Sam2Bundle, size_px: int | None, path: Path) -> int:
    sizes = bundle.sizes_px()
    if size_px is None and len(sizes) == 1:
        return sizes[0]
    if size_px not in sizes:
        raise UsageError(
            "Which input size of SAM-2 is to be served?",
            where=path,
            expected=" | ".join(map(str, sizes)),
            found="none given" if size_px is None else size_px,
            action="Give --size.",
        )
    return size_px


def _predict_model(config: RepositoryConfig, bundle: Sam2Bundle, size: int) -> _Planned:
    cells = size // 4
    inputs = (
        _tensor("image", "uint8", (size, size, 3), "Pixels."),
        _tensor("point_coords", "float32", ("P", 2), "(x, y) of all objects' points in order."),
        _tensor("point_labels", "int32", ("P",), "1 inside, 0 outside, 2 and 3 box corners."),
        _tensor("point_counts", "int32", ("L",), "How many of the points each object has."),
        _tensor("mask_input", "float32", ("L", 1, cells, cells), "Logits of rough masks."),
        _tensor("has_mask", "float32", ("L",), "1 to use an object's mask_input, 0 not to."),
    )
    outputs = (
        _tensor("masks", "float32", ("L", cells, cells), "Logits of the mask that is kept."),
        _tensor("iou", "float32", ("L",), "Its predicted IoU."),
        _tensor("object_score", "float32", ("L",), "Logit that the object is there at all."),
        _tensor("all_masks", "float32", ("L", 4, cells, cells), "All four masks."),
        _tensor("all_iou", "float32", ("L", 4), "Their predicted IoU."),
    )
    model = ModelConfig(
        name="sam2_predict",
        backend="python",
        file_name="model.py",
        inputs=inputs,
        outputs=outputs,
        optional=frozenset({"mask_input", "has_mask"}),
        parameters={
            "cache_mib": str(config.cache_mib),
            "chunk": str(config.chunk),
            "multimask_min_points": str(bundle.rules.multimask_min_points),
            "multimask_max_points": str(bundle.rules.multimask_max_points),
            # It keeps features: of another encoder it must be another model, and be loaded anew.
            "encoder_sha256": bundle.graph("encoder", size).file.sha256,
        },
    )
    return _Planned(model, bundle.weights_sha256, {"model.py": _MODELS / "predict.py"})


def _segmenter_models(config: RepositoryConfig, path: Path) -> list[_Planned]:
    bundle = load_contract(ModelBundle, path)
    if len(bundle.inputs[0].shape) != 4:
        raise DataError(
            "Only students of slices can be served.",
            where=path,
            expected="an input of four axes",
            found=bundle.inputs[0].shape,
        )
    rows, cols = bundle.preprocessing.size_hw
    image = bundle.inputs[0].name
    net = _graph_model(
        config,
        "segmenter_net",
        bundle.model_digest,
        verified_path(bundle.onnx, base=path.parent),
        bundle.inputs,
        bundle.outputs,
        warm_ups=tuple(
            WarmUp(f"slices_{count}", {image: (count, 1, rows, cols)})
            for count in sorted({1, config.segmenter_batch})
        ),
        bounded=True,
    )
    classes = len(bundle.class_names)
    model = ModelConfig(
        name="segmenter",
        backend="python",
        file_name="model.py",
        inputs=(_tensor("volume", "float32", ("S", "H", "W"), "Voxels as they are stored."),),
        outputs=(
            _tensor("labels", "uint8", ("S", "H", "W"), "Class of each voxel."),
            _tensor("logits", "float32", ("S", classes, rows, cols), "Of the resized slices."),
        ),
        parameters={
            "preprocessing": bundle.preprocessing.model_dump_json(),
            "batch": str(config.segmenter_batch),
        },
    )
    return [net, _Planned(model, bundle.model_digest, {"model.py": _MODELS / "segmenter.py"})]


def _graph_model(
    config: RepositoryConfig,
    name: str,
    digest: Sha256,
    graph: Path,
    inputs: Sequence[TensorContract],
    outputs: Sequence[TensorContract],
    *,
    warm_ups: Sequence[WarmUp],
    max_batch: int = 0,
    bounded: bool = False,
) -> _Planned:
    """One ONNX graph in the form of the profile.

    TensorRT builds an engine again, for minutes, when a shape leaves the ranges that it has seen.
    It gets the `bounded` graphs only, whose warm-ups show it both ends of their free axis; prompts
    and memories vary in too many ways, and stay with CUDA.
    """
    in_python, gpu = config.profile == "cpu", config.profile.startswith("gpu")
    threads = str(config.threads)
    parameters = {"threads": threads} if in_python else {"intra_op_thread_count": threads}
    if gpu:
        # 1: by heuristics. The default tries every algorithm out for each new shape.
        parameters["cudnn_conv_algo_search"] = "1"
    tensorrt = config.profile == "gpu-tensorrt" and bounded
    model = ModelConfig(
        name=name,
        backend="python" if in_python else "onnxruntime",
        file_name="model.py" if in_python else "model.onnx",
        inputs=inputs,
        outputs=outputs,
        max_batch=max_batch,
        gpu=gpu,
        tensorrt_cache=config.engine_cache if tensorrt else None,
        batch_delay_us=config.batch_delay_us if gpu and max_batch else None,
        parameters=parameters,
        warm_ups=warm_ups,
    )
    files = {"model.onnx": graph}
    return _Planned(
        model, digest, files | ({"model.py": _MODELS / "graph.py"} if in_python else {})
    )


def _warm_ups(config: RepositoryConfig, graph: Sam2Graph, size: int) -> tuple[WarmUp, ...]:
    """One object with a box, and eight: zeros are a valid request of every graph."""
    if graph.graph == "encoder":
        # A CPU batches nothing, and would take seconds for the larger one.
        batches = {1, config.encoder_batch} if config.profile.startswith("gpu") else {1}
        image = {"image": (3, size, size)}
        return tuple(WarmUp(f"images_{n}", image, batch=n) for n in sorted(batches))
    found = []
    for objects in (1, 8) if graph.graph == "decoder" else (1,):
        free = {"L": objects, "N": 3, "B": 1, "T": 2, "P": 2}
        shapes = {
            tensor.name: tuple(a if isinstance(a, int) else free[a] for a in tensor.shape)
            for tensor in graph.inputs
        }
        found.append(WarmUp(f"objects_{objects}", shapes))
    return tuple(found)


def _write(item: _Planned, out: Path, version: int) -> ServedModel:
    config = item.config
    folder = out / config.name
    written: list[ObjectRef] = []
    for file_name, source in sorted(item.files.items()):
        target = folder / str(version) / file_name
        write_bytes(target, source.read_bytes())
        written.append(reference(target, base=out))
    write_text(folder / "config.pbtxt", to_pbtxt(config))
    with disk_errors(folder):
        drop_other_versions(folder, version)
    written.append(reference(folder / "config.pbtxt", base=out))
    return ServedModel(
        name=config.name,
        version=version,
        digest=item.digest,
        inputs=tuple(config.inputs),
        outputs=tuple(config.outputs),
        files=tuple(written),
    )


def _tensor(name: str, dtype: str, shape: tuple[int | str, ...], meaning: str) -> TensorContract:
    return TensorContract(name=name, dtype=dtype, shape=shape, meaning=meaning)
