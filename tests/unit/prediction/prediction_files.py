"""Models and scans that are small enough to segment in a moment."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from sssflow.contracts.model import IntensityRule, Preprocessing
from sssflow.networks.config import NetworkConfig
from sssflow.networks.registry import build_network
from sssflow.networks.trained import Provenance, save_model

SHAPE_XYZ = (20, 18, 3)
AFFINE = np.array([[-1.5, 0, 0, 30.0], [0, -1.25, 0, 7.0], [0, 0, 8.0, -3.0], [0, 0, 0, 1]])
NAMES = ("background", "disc", "ring")


def make_model(folder, seed=0, names=NAMES):
    network = NetworkConfig(name="unet", base_channels=4, levels=3)
    net = build_network(network, len(names), seed=seed)
    rules = Preprocessing(size_hw=(16, 16), intensity=IntensityRule(kind="minmax"))
    made = Provenance(names, "0" * 64, "supervised", 1, warnings=("Made of nothing.",))
    save_model(folder, net.state_dict(), network, rules, made)
    return folder / "model.json"


def write_scan(path, seed=0, shape=SHAPE_XYZ):
    voxels = np.random.default_rng(seed).integers(0, 400, shape).astype(np.int16)
    nib.Nifti1Image(voxels, AFFINE).to_filename(path)
    return voxels
