"""A class without a labelled voxel is named wherever the model's figures are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sssflow.contracts.dataset import DatasetManifest
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import data as streams
from sssflow.training import stage
from sssflow.training.unseen import unseen_warnings

NET_3D = {"name": "vnet", "dimensions": 3, "base_channels": 4, "levels": 3}
FORMS = [{}, {"network": NET_3D, "preprocessing": {"patch": {"size_shw": [8, 32, 32]}}}]


@pytest.mark.parametrize("form", FORMS)
def test_a_class_that_no_labelled_case_shows_stays_with_the_model(
    form, tiny, tiny_config, tmp_path
):
    folder = tmp_path / "dataset"
    shutil.copytree(tiny.dataset.parent, folder)
    manifest = load_contract(DatasetManifest, tiny.dataset)
    more = manifest.model_copy(update={"class_names": (*manifest.class_names, "scar")})
    save_contract(more, folder / "manifest.json")
    config = tiny_config(steps=2, eval_every=2, **form)
    record = stage.run(config, folder / "manifest.json", tmp_path / "run")
    told = (
        "No labelled case shows scar at the size that the network sees: the model cannot have "
        "learned it."
    )
    assert record.notes == (told,)
    assert load_model(tmp_path / "run" / "model").description.warnings == (told,)
    plain = stage.run(config, tiny.dataset, tmp_path / "plain")
    assert plain.notes == ()


def test_a_class_that_is_lost_at_the_networks_size_is_named_too():
    label_hw = torch.zeros(64, 64, dtype=torch.uint8)
    label_hw[10:50, 10:50], label_hw[0, 0] = 1, 2
    small = streams.resize_images(label_hw[None, None].float(), (16, 16), "nearest")[:, 0]
    assert (np.unique(label_hw).tolist(), small.unique().tolist()) == ([0, 1, 2], [0.0, 1.0])
    slices = streams.Slices(torch.zeros(1, 1, 16, 16), ("a",), label_nhw=small.to(torch.uint8))
    (told,) = unseen_warnings(slices, ("background", "heart", "scar"))
    assert "shows scar at" in told


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_once(form, tiny, tiny_config, tmp_path, monkeypatch):
    read = []
    real = streams.read_packed

    def counted(ref, **rest):
        read.append(Path(ref.uri).name)
        return real(ref, **rest)

    monkeypatch.setattr(streams, "read_packed", counted)
    stage.run(tiny_config(steps=1, **form), tiny.dataset, tmp_path)
    assert sorted(read) == [f"{name}.b2nd" for name in ("a1", "a1", "a2", "a2", "c1", "c1")]
