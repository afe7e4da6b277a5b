"""PCSW on real anatomy: every structure of the ACDC truth is one piece in its best window."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from literal_pcsw import literal_prompts

from sssflow.prompts.config import PcswConfig
from sssflow.prompts.pcsw import select_prompts

NAMES = ("background", "RV", "MYO", "LV")


@pytest.mark.realdata
def test_true_hearts_pass_and_the_literal_form_agrees(real_acdc: Path) -> None:
    files = sorted((real_acdc / "data").glob("*.h5"))[:6]
    assert len(files) == 6
    for file in files:
        with h5py.File(file) as opened:
            labels = opened["label"][...].astype(np.uint8)
        for config in (PcswConfig(), PcswConfig(preset="fragment")):
            found = select_prompts(labels, config, class_names=NAMES)
            assert [item.class_index for item in found] == [1, 2, 3]
            assert all(item.accepted for item in found)
            assert found == literal_prompts(labels, config, NAMES)
