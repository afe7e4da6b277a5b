"""A class without a labelled voxel is named wherever the model's figures are read."""

from __future__ import annotations

import shutil

from sssflow.contracts.dataset import DatasetManifest
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import stage
from sssflow.training.unseen import unseen_warnings


def test_a_class_that_no_labelled_case_shows_stays_with_the_model(tiny, tiny_config, tmp_path):
    folder = tmp_path / "dataset"
    shutil.copytree(tiny.dataset.parent, folder)
    manifest = load_contract(DatasetManifest, tiny.dataset)
    assert unseen_warnings(manifest, folder) == ()
    more = manifest.model_copy(update={"class_names": (*manifest.class_names, "scar")})
    save_contract(more, folder / "manifest.json")
    config = tiny_config(steps=2, eval_every=2)
    record = stage.run(config, folder / "manifest.json", tmp_path / "run")
    told = "No labelled case shows scar: the model cannot have learned it."
    assert record.notes == (told,)
    assert load_model(tmp_path / "run" / "model").description.warnings == (told,)
