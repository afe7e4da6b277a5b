"""Save and load a trained student: `model.json` (TrainedModel) and a safetensors file beside it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sssflow.configuration import parse_config
from sssflow.contracts.base import Sha256
from sssflow.contracts.model import Preprocessing, SeenImages, TrainedModel
from sssflow.errors import DataError
from sssflow.networks.base import SegmentationNet
from sssflow.networks.config import NetworkConfig
from sssflow.networks.registry import build_network
from sssflow.storage.atomic import write_bytes
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, verified_path

MODEL_FILE = "model.json"
_WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """A student in evaluation mode on the asked device, with what it was trained with."""

    net: SegmentationNet
    description: TrainedModel

    @property
    def digest(self) -> Sha256:
        """Digest of the description; it contains the digest of the weights."""
        return self.description.digest


@dataclass(frozen=True)
class Provenance:
    """What a model's description says of its making."""

    class_names: tuple[str, ...]
    dataset_digest: Sha256
    method: str
    step: int
    warnings: tuple[str, ...] = ()
    seen: SeenImages | None = None


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    network: NetworkConfig,
    preprocessing: Preprocessing,
    provenance: Provenance,
) -> TrainedModel:
    """Write weights first, then `model.json`; equal weights give equal bytes.

    Raises:
        UnavailableError: The disk is full or read-only.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in sorted(state.items())}
    weights = folder / _WEIGHTS_FILE
    write_bytes(weights, save(tensors))
    model = TrainedModel(
        network=network.model_dump(mode="json"),
        preprocessing=preprocessing,
        class_names=provenance.class_names,
        weights=reference(weights),
        dataset_digest=provenance.dataset_digest,
        method=provenance.method,
        step=provenance.step,
        warnings=provenance.warnings,
        seen=provenance.seen,
    )
    save_contract(model, folder / MODEL_FILE)
    return model


def load_model(path: Path, *, device: str | torch.device = "cpu") -> LoadedModel:
    """Load `model.json` (or the folder that holds it) with its weights, in evaluation mode.

    Raises:
        DataError: A file is missing, changed, or the weights do not fit the network or are not
            finite.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    description = load_contract(TrainedModel, file)
    config = parse_config(NetworkConfig, description.network, source=str(file))
    net = build_network(config, len(description.class_names), seed=0)
    weights = verified_path(description.weights, base=file.parent)
    try:
        net.load_state_dict(load_file(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise DataError(
            "The weights do not fit the network.",
            where=weights,
            expected=f"{config.name} with {config.base_channels} base channels",
            found=str(error)[:300],
            action="Use the model.json that was written with these weights.",
        ) from None
    if broken := not_finite(net):
        raise DataError(
            "The weights are not finite: this model would call everything background.",
            where=weights,
            expected="finite weights",
            found=f"NaN or infinity in {len(broken)} tensors, first {broken[0]}",
            action="Train it again; trainings refuse to keep such weights now.",
        )
    return LoadedModel(net.to(device).eval(), description)


def not_finite(module: nn.Module) -> list[str]:
    """Names of the tensors, running statistics among them, that hold a NaN or an infinity."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return [name for name, value in tensors if not bool(torch.isfinite(value).all())]
