"""SemiSAM and labels: what poisons an oracle run and no other, and who may ask for one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from semisam_cases import LOOSE, Recorder, prepared, step

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role, UnlabelledCase
from sssflow.errors import DataError, UsageError
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference
from sssflow.training import stage
from sssflow.training.data import UnlabelledBatch
from sssflow.training.oracle import LeakedBatch, leaked_manifest
from sssflow.training.semisam_config import SemiSamConfig
from sssflow.volume.packed import write_packed

BASES = ("mean_teacher", "ua_mt", "dan")


def oracle_of(tiny, folder, truth):
    """The same cases, the unlabelled ones with these labels, in a dataset of its own."""
    manifest = load_contract(DatasetManifest, tiny.dataset)
    folder.mkdir()
    cases = []
    for case in manifest.cases:
        copied = folder / case.image.uri
        copied.parent.mkdir(exist_ok=True)
        copied.write_bytes((tiny.dataset.parent / case.image.uri).read_bytes())
        write_packed(folder / "labels" / f"{case.case_id}.b2nd", truth[case.case_id])
        label = reference(folder / "labels" / f"{case.case_id}.b2nd", base=folder)
        data = case.model_dump(exclude={"role", "label"})
        role = Role.LABELLED if isinstance(case, UnlabelledCase) else case.role
        cases.append(LabelledCase.model_validate({**data, "role": role, "label": label}))
    return save_contract(
        manifest.model_copy(update={"cases": tuple(cases)}), folder / "manifest.json"
    )


def test_poisoned_labels_of_unlabelled_cases_change_the_weights_of_an_oracle_run_and_no_other(
    tiny, tiny_config, tmp_path, nano
):
    rng = np.random.default_rng(0)
    noise = {name: rng.integers(0, 3, t.shape).astype(np.uint8) for name, t in tiny.truth.items()}
    paths = {
        "clean": oracle_of(tiny, tmp_path / "clean", tiny.truth),
        "poisoned": oracle_of(tiny, tmp_path / "poisoned", noise),
    }
    weights, records = {}, {}
    for name, oracle in paths.items():
        settings = {**LOOSE, "preset": "oracle_prompts"}
        config = tiny_config(method="semisam", semisam=settings, steps=3)
        out = tmp_path / f"run_{name}"
        records[name] = stage.run(
            config, tiny.dataset, out, generalist=nano, leak_labels_from=oracle
        )
        weights[name] = load_file(out / "model" / "weights.safetensors")
    # The honesty test that every method passes fails here, as it does for v1's released code.
    assert any(not torch.equal(v, weights["poisoned"][k]) for k, v in weights["clean"].items())
    record = records["clean"]
    assert record.notes[0].startswith("LEAKS LABELS")
    assert record.config["semisam"]["preset"] == "oracle_prompts"
    assert record.inputs["leaked_labels"] != records["poisoned"].inputs["leaked_labels"]
    model = load_model(tmp_path / "run_clean" / "model").description
    assert model.warnings == record.notes[:1]


@pytest.mark.parametrize("given", ["preset", "dataset"])
def test_labels_leak_only_if_preset_and_dataset_both_say_so(given, tiny, tiny_config, tmp_path):
    preset = "oracle_prompts" if given == "preset" else "specialist_prompts"
    config = tiny_config(method="semisam", semisam={"preset": preset})
    with pytest.raises(UsageError, match="both say so"):
        stage.run(
            config,
            tiny.dataset,
            tmp_path,
            generalist=Recorder(),
            leak_labels_from=tiny.dataset if given == "dataset" else None,
        )
    assert SemiSamConfig().preset == "specialist_prompts"


def test_another_method_never_takes_leaked_labels(tiny, tiny_config, tmp_path):
    with pytest.raises(UsageError, match="both say so"):
        stage.run(
            tiny_config(method="mean_teacher"),
            tiny.dataset,
            tmp_path,
            leak_labels_from=tiny.dataset,
        )


def test_the_leaked_labels_must_be_of_the_same_images(tiny, tmp_path):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    path = oracle_of(tiny, tmp_path / "oracle", tiny.truth)
    oracle = load_contract(DatasetManifest, path)
    found = leaked_manifest(manifest, oracle)
    assert [c.case_id for c in found.labelled(Role.LABELLED)] == ["b1", "b2", "b3"]
    with pytest.raises(DataError, match="does not hold this case"):
        leaked_manifest(manifest, manifest)
    cases = [c.model_copy(update={"image": oracle.cases[0].image}) for c in oracle.cases]
    with pytest.raises(DataError, match="does not hold this case"):
        leaked_manifest(manifest, oracle.model_copy(update={"cases": tuple(cases)}))
    other = oracle.model_copy(update={"class_names": ("background", "x", "y")})
    with pytest.raises(DataError, match="other classes"):
        leaked_manifest(manifest, other)


def test_only_an_oracle_run_has_a_batch_with_leaked_labels(tiny, tiny_config, tmp_path):
    config = tiny_config(method="semisam", semisam=LOOSE)
    batch = prepared(config, tiny, Recorder()).data.unlabelled.unlabelled_batch(
        torch.tensor([0]), seed=0
    )
    assert type(batch) is UnlabelledBatch
    oracle = oracle_of(tiny, tmp_path / "oracle", tiny.truth)
    config = tiny_config(method="semisam", semisam={**LOOSE, "preset": "oracle_prompts"})
    run = prepared(config, tiny, Recorder(), oracle)
    assert isinstance(run.data.unlabelled.unlabelled_batch(torch.tensor([0]), seed=0), LeakedBatch)
    recorder = run.method.generalist
    step(run)
    assert len(recorder.asked[0][1]) > 0


def test_leaked_labels_do_not_choose_the_slices(tiny, tiny_config, tmp_path):
    oracle = oracle_of(tiny, tmp_path / "oracle", tiny.truth)
    settings = {"semisam": {**LOOSE, "preset": "oracle_prompts"}, "foreground_probability": 1.0}
    run = prepared(tiny_config(method="semisam", **settings), tiny, Recorder(), oracle)
    plain = prepared(tiny_config(method="semisam", semisam=LOOSE), tiny, Recorder())
    index = torch.tensor([0, 1, 2, 5])
    leaked, read = (
        r.data.unlabelled.unlabelled_batch(index, seed=0).image_bchw for r in (run, plain)
    )
    assert torch.equal(leaked, read)
