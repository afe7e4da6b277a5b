"""The method that docs/how-to/add-a-method.md shows is a method like the others."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

from sssflow.contracts.dataset import DatasetManifest
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.loop import train_step
from sssflow.training.methods import registry

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "add-a-method.md"


def test_the_file_that_the_page_shows_trains_after_one_registry_line(
    tiny, tiny_config, tmp_path, monkeypatch
):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "entropy_minimisation.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(registry.METHODS, "entropy", module.EntropyMinimisation)
    # The name is in MethodName once the method is in the tree; a copy is not validated again.
    config = tiny_config(steps=20).model_copy(update={"method": "entropy"})
    manifest = load_contract(DatasetManifest, tiny.dataset)
    run = stage.prepare(config, manifest, tiny.dataset.parent, tmp_path)
    run.method.train_mode()
    found = [train_step(run, step) for step in range(20)]
    assert set(found[0][0].terms) == {"labelled", "entropy"}
    assert all(torch.isfinite(terms.total) for terms, _ in found)
    assert found[-1][1] < found[0][1]
