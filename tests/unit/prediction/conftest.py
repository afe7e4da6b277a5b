"""A trained network and two scans."""

from __future__ import annotations

import pytest
from prediction_files import make_model, write_scan


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed, name in enumerate(("b_0000.nii.gz", "a.nii")):
        write_scan(folder / name, seed)
    (folder / "notes.txt").write_text("not a scan")
    return folder
