"""A 3-D student as ONNX: free sides, parity at two sizes, a card that tells how to use it."""

from __future__ import annotations

import pytest

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.model import IntensityRule, PatchRule, Preprocessing
from sssflow.export import stage
from sssflow.export.config import ExportConfig
from sssflow.export.parity import parity_sizes
from sssflow.networks.config import NetworkConfig
from sssflow.networks.registry import build_network
from sssflow.networks.trained import Provenance, load_model, save_model
from sssflow.storage.contracts import load_contract


@pytest.mark.parametrize("name", ["vnet", "unet3d"])
def test_a_3d_student_is_exported_with_free_sides_and_proven_at_two_sizes(name, ready, tmp_path):
    network = NetworkConfig(name=name, dimensions=3, base_channels=4, levels=3)
    manifest = load_contract(DatasetManifest, ready.dataset)
    preprocessing = Preprocessing(
        intensity=IntensityRule(kind="zscore"),
        # The volume has 10 x 20 x 24 voxels: the second size, 12 x 24 x 24, is padded.
        patch=PatchRule(size_shw=(8, 16, 16), scale_shw=(1.0, 1.0, 0.5)),
    )
    weights = build_network(network, manifest.class_count, seed=3).state_dict()
    about = Provenance(manifest.class_names, manifest.digest, "supervised", 5)
    save_model(tmp_path / "model", weights, network, preprocessing, about)
    model = load_model(tmp_path / "model")
    assert parity_sizes(model, ExportConfig()) == ((8, 16, 16), (12, 24, 24))

    bundle = stage.run(
        ExportConfig(parity_cases=1), tmp_path / "model", ready.dataset, tmp_path / "out"
    )

    (image,), (logits,) = bundle.inputs, bundle.outputs
    assert (image.name, logits.name) == ("image_bcshw", "logits_bkshw")
    assert image.shape == ("batch", 1, "4*slices", "4*rows", "4*cols")
    assert logits.shape[1] == 3
    assert [figure.shape for figure in bundle.parity] == [(1, 1, 8, 16, 16), (1, 1, 12, 24, 24)]
    assert all(figure.max_abs_difference <= 1e-4 for figure in bundle.parity)
    assert all(figure.masks_equal for figure in bundle.parity)
    card = (tmp_path / "out" / "model_card.md").read_text(encoding="utf-8")
    assert "Scale the volume by 1 × 1 × 0.5" in card
    assert "cut patches of 8 × 16 × 16, one every 4 × 8 × 8 voxels" in card
    assert card.count('"is_patch_data": true') == 2
    assert "gaussian weights" in card
    assert "Each slice is segmented by itself" not in card


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_student_whose_input_is_one_cell_high_at_its_coarsest_level_is_exported(
    dimensions, ready, tmp_path
):
    name = "unet" if dimensions == 2 else "vnet"
    network = NetworkConfig(name=name, dimensions=dimensions, base_channels=4, levels=3)
    manifest = load_contract(DatasetManifest, ready.dataset)
    patch = PatchRule(size_shw=(4, 16, 16)) if dimensions == 3 else None
    weights = build_network(network, manifest.class_count, seed=3).state_dict()
    about = Provenance(manifest.class_names, manifest.digest, "supervised", 5)
    preprocessing = Preprocessing(size_hw=(4, 24), patch=patch)
    save_model(tmp_path / "model", weights, network, preprocessing, about)
    config = ExportConfig(parity_cases=1, parity_slices=1)
    bundle = stage.run(config, tmp_path / "model", ready.dataset, tmp_path / "out")
    small, large = ((4, 16, 16), (8, 24, 24)) if dimensions == 3 else ((4, 24), (8, 36))
    assert [figure.shape for figure in bundle.parity] == [(1, 1, *small), (1, 1, *large)]
    assert all(figure.masks_equal for figure in bundle.parity)
