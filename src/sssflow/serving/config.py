"""Settings of the serving room: the model repository, and how a client behaves."""

from __future__ import annotations

from pydantic import Field

from sssflow.configuration import Config
from sssflow.contracts.model_repository import Profile


class RepositoryConfig(Config):
    """How the model repository is written."""

    profile: Profile = Field(
        "cpu",
        description="cpu: ONNX Runtime inside Python models, for the server of `sssflow serve "
        "up`; cpu-onnxruntime: the onnxruntime backend of NVIDIA's image on CPU; gpu: the same on "
        "a GPU (CUDA); gpu-tensorrt: with TensorRT engines.",
    )
    threads: int = Field(2, ge=1, le=256, description="CPU threads of one graph; the CPU limit.")
    cache_mib: int = Field(
        256, ge=0, description="sam2_predict: features of images that it keeps, in MiB."
    )
    chunk: int = Field(
        8, ge=1, le=16, description="sam2_predict: objects of one decoder call at most."
    )
    encoder_batch: int = Field(8, ge=1, le=64, description="sam2_encoder: images of one request.")
    batch_delay_us: int = Field(
        500, ge=0, description="gpu: wait of sam2_encoder for further requests, in microseconds."
    )
    segmenter_batch: int = Field(8, ge=1, le=64, description="segmenter: slices at once.")
    engine_cache: str = Field(
        "/tmp/tensorrt-engines",  # noqa: S108 - inside the server's container
        description="gpu-tensorrt: folder of the server that keeps built engines.",
    )


class ClientConfig(Config):
    """How a client talks to Triton. No call waits for ever."""

    url: str = Field(
        "grpc://127.0.0.1:8001",
        pattern=r"^(grpc|http)://[^/\s]+:\d{1,5}$",
        description="grpc://host:port, or http://host:port (binary tensors).",
    )
    fallback_url: str | None = Field(
        None,
        pattern=r"^http://[^/\s]+:\d{1,5}$",
        description="Used from then on if the first call finds no server at `url`.",
    )
    deadline_s: float = Field(60.0, gt=0, description="Of one inference, from send to answer.")
    control_deadline_s: float = Field(
        10.0, gt=0, description="Of one question about health or models."
    )
    load_deadline_s: float = Field(600.0, gt=0, description="Of loading or unloading a model.")
    patience_s: float = Field(
        60.0,
        ge=0,
        description="How long a server that is away or full is asked again; 0: once only.",
    )
    concurrency: int = Field(2, ge=1, le=64, description="Requests under way at the same time.")
    admin_header: str | None = Field(
        None, description="Header of the server's restricted interfaces."
    )
    admin_key: str | None = Field(None, repr=False, description="Its value; never logged.")
