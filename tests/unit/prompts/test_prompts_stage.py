"""The prompts stage on a tiny packed dataset and an untrained student whose last bias is set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import (
    DatasetManifest,
    Grid,
    LabelledCase,
    Modality,
    Role,
    UnlabelledCase,
)
from sssflow.contracts.model import IntensityRule, Preprocessing
from sssflow.contracts.prompts import PromptSet
from sssflow.errors import DataError, UsageError
from sssflow.networks.base import SegmentationNet
from sssflow.networks.config import NetworkConfig
from sssflow.networks.predict import predict_labels
from sssflow.networks.registry import build_network
from sssflow.networks.trained import Provenance, load_model, save_model
from sssflow.prompts.coarse import coarse_labels
from sssflow.prompts.config import PcswConfig, PromptConfig
from sssflow.prompts.pcsw import select_prompts
from sssflow.prompts.stage import run
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.volume.intensity import normalise
from sssflow.volume.packed import read_packed, write_packed

NAMES = ("background", "RV", "LV")
NETWORK = NetworkConfig(base_channels=4, levels=3, dropout=0.0)
PREPROCESSING = Preprocessing(intensity=IntensityRule(kind="minmax"), size_hw=(16, 16))
SHAPE = (5, 20, 24)


class ByBrightness(SegmentationNet):
    """Class 1 where the normalised image lies in (0.3, 0.7), class 2 above, else background."""

    class_count = 3
    feature_channels = (1,)
    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(20.0))

    def features(self, image_bchw: torch.Tensor) -> list[torch.Tensor]:
        return [image_bchw]

    def head(self, features: list[torch.Tensor]) -> torch.Tensor:
        centres = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
        return -self.gain * (features[0] - centres) ** 2


def grid() -> Grid:
    return Grid(
        shape_shw=SHAPE,
        spacing_shw_mm=(10, 1, 1),
        affine_ras=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
    )


def make_dataset(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    cases: list[LabelledCase | UnlabelledCase] = []
    for name, role in (
        ("a", Role.LABELLED),
        ("b", Role.UNLABELLED),
        ("c", Role.UNLABELLED),
        ("d", Role.VALIDATION),
    ):
        image_shw = rng.normal(100, 20, SHAPE).astype(np.float32)
        image = write_packed(folder / "images" / f"{name}.b2nd", image_shw, base=folder)
        common = {
            "case_id": name,
            "patient_id": name,
            "image": image,
            "grid": grid(),
            "modality": Modality.MR,
            "role": role,
        }
        if role is Role.UNLABELLED:
            cases.append(UnlabelledCase(**common))
        else:
            # The file does not exist: a stage that opens a label fails.
            label = ObjectRef(uri=f"labels/{name}.b2nd", size_bytes=1, sha256="0" * 64)
            cases.append(LabelledCase(**common, label=label))
    manifest = DatasetManifest(
        name="tiny",
        source_layout="test",
        class_names=NAMES,
        source_digest="0" * 64,
        split_rule="by hand",
        cases=tuple(cases),
    )
    return save_contract(manifest, folder / "manifest.json")


def make_model(folder: Path, class_names: tuple[str, ...] = NAMES) -> Path:
    net = build_network(NETWORK, len(class_names), seed=1)
    provenance = Provenance(class_names, "0" * 64, "supervised", 0)
    save_model(folder, net.state_dict(), NETWORK, PREPROCESSING, provenance)
    return folder / "model.json"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("prompts")
    return make_dataset(folder / "dataset"), make_model(folder / "model")


def test_unlabelled_cases_are_prompted_from_their_own_coarse_masks(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, model = places
    found = run(PromptConfig(), dataset, model, tmp_path)
    assert [case.case_id for case in found.cases] == ["b", "c"]
    assert load_contract(PromptSet, tmp_path / "prompts.json") == found
    manifest = load_contract(DatasetManifest, dataset)
    assert found.dataset_digest == manifest.digest
    assert found.model_digest == load_model(model).digest
    loaded = load_model(model)
    assert all(case.objects for case in found.cases)
    for case, source in zip(found.cases, manifest.with_role(Role.UNLABELLED), strict=True):
        assert case.coarse is not None
        coarse_shw = read_packed(case.coarse, base=tmp_path, shape=SHAPE)
        image_shw = read_packed(source.image, base=dataset.parent)
        volume_shw = normalise(image_shw, PREPROCESSING.intensity)
        assert np.array_equal(coarse_shw, predict_labels(loaded.net, volume_shw, PREPROCESSING))
        assert case.objects == select_prompts(
            coarse_shw.astype(np.uint8), PcswConfig(), class_names=NAMES
        )
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "b.b2nd",
        "c.b2nd",
        "prompts.json",
    ]


def test_two_runs_and_two_shards_give_the_same_bytes(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, model = places
    for name in ("one", "two"):
        run(PromptConfig(), dataset, model, tmp_path / name)
    for file in ("prompts.json", "coarse/b.b2nd", "coarse/c.b2nd"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    whole = load_contract(PromptSet, tmp_path / "one" / "prompts.json")
    shards = [
        run(PromptConfig(), dataset, model, tmp_path / name, case_ids=[name]) for name in ("c", "b")
    ]
    assert shards[1].cases + shards[0].cases == whole.cases


def test_labelled_roles_are_prompted_without_their_labels(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, model = places
    config = PromptConfig(roles=(Role.VALIDATION, Role.LABELLED))
    found = run(config, dataset, model, tmp_path)  # their label files do not exist
    assert [case.case_id for case in found.cases] == ["a", "d"]


def test_a_case_of_another_role_is_refused_by_name(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, model = places
    with pytest.raises(UsageError, match=r"d \(validation\)\n.*prompts\.roles"):
        run(PromptConfig(), dataset, model, tmp_path, case_ids=["b", "d"])
    with pytest.raises(DataError, match="Unknown case"):
        run(PromptConfig(), dataset, model, tmp_path, case_ids=["nobody"])
    with pytest.raises(DataError, match=r"--set prompts\.roles=\[validation\]"):
        run(PromptConfig(roles=(Role.TEST,)), dataset, model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_gives_an_empty_prompt_set(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, model = places
    assert run(PromptConfig(), dataset, model, tmp_path, case_ids=[]).cases == ()


def test_a_model_of_other_classes_and_a_wrong_tau_are_refused(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, model = places
    other = make_model(tmp_path / "model", ("background", "SAH", "SDH"))
    with pytest.raises(DataError, match="SAH"):
        run(PromptConfig(), dataset, other, tmp_path / "out")
    config = PromptConfig(pcsw=PcswConfig(tau_per_class={"liver": 0.5}))
    with pytest.raises(UsageError, match="liver"):
        run(config, dataset, model, tmp_path / "out")
    with pytest.raises(UsageError, match="device"):
        run(PromptConfig(device="abacus"), dataset, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_run_leaves_no_old_contract_behind(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    _, model = places
    dataset = make_dataset(tmp_path / "dataset")
    run(PromptConfig(), dataset, model, tmp_path / "out")
    (dataset.parent / "images" / "c.b2nd").unlink()
    with pytest.raises(DataError, match="missing"):
        run(PromptConfig(), dataset, model, tmp_path / "out")
    assert not (tmp_path / "out" / "prompts.json").exists()


def test_coarse_labels_follow_the_image_and_tell_how_sure_they_are(
    places: tuple[Path, Path],
) -> None:
    description = load_model(places[1]).description
    image_shw = np.zeros((3, 16, 16), np.int16)
    image_shw[1, 4:8, 4:8] = 50
    image_shw[2, 8:12, 8:12] = 100
    for batch in (1, 2, 8):
        labels_shw, confidence_shw = coarse_labels(
            ByBrightness().eval(), description, image_shw, batch_slices=batch
        )
        # The whole volume sets the scale: 50 is half of the brightest voxel of slice 2.
        assert np.array_equal(labels_shw, (image_shw // 50).astype(np.uint8))
        # exp(0) / (exp(0) + 2 exp(-5)) for the middle class, two unequal others elsewhere.
        assert confidence_shw[1, 5, 5] == pytest.approx(1 / (1 + 2 * np.exp(-5)), abs=1e-6)
        assert confidence_shw[0, 0, 0] == pytest.approx(
            1 / (1 + np.exp(-5) + np.exp(-20)), abs=1e-6
        )
        assert (labels_shw.dtype, confidence_shw.dtype) == (np.uint8, np.float32)


def test_a_class_that_gets_no_prompt_in_any_case_is_warned_of(
    places: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, model = places
    loaded = load_model(model)
    state = loaded.net.state_dict()
    bias = [name for name, value in state.items() if name.endswith("bias") and len(value) == 3][-1]
    state[bias] = torch.tensor([100.0, 0.0, -100.0])  # background everywhere
    provenance = Provenance(NAMES, "0" * 64, "supervised", 0)
    save_model(tmp_path / "blind", state, NETWORK, PREPROCESSING, provenance)
    found = run(PromptConfig(), dataset, tmp_path / "blind" / "model.json", tmp_path / "out")
    assert not any(case.objects for case in found.cases)
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text.split(",")[0] for text in warned] == [
        "no prompt for RV in any of 2 case(s)",
        "no prompt for LV in any of 2 case(s)",
    ]
