"""Contracts come back equal, and everything that is not exactly one of them is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sssflow.contracts.base import Contract, ObjectRef
from sssflow.contracts.bundle import ModelBundle, ParityFigure, TensorContract
from sssflow.contracts.dataset import (
    DatasetManifest,
    Grid,
    LabelledCase,
    Modality,
    Role,
    UnlabelledCase,
)
from sssflow.contracts.masks import CaseMasks, MaskSet, ObjectScores, require_same_dataset
from sssflow.contracts.model import Preprocessing, SeenImages, TrainedModel
from sssflow.contracts.pointer import Pointer
from sssflow.contracts.prediction import FailedScan, PredictedScan, PredictionSet
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, PromptSet, SlicePrompt
from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError

SHA = "ab" * 32
OTHER_SHA = "cd" * 32
REF = ObjectRef(uri="images/a.b2nd", size_bytes=3, sha256=SHA)
GRID = Grid(
    shape_shw=(4, 10, 12),
    spacing_shw_mm=(8.0, 1.5, 1.5),
    affine_ras=((-1.5, 0, 0, 10.25), (0, -1.5, 0, 0.1), (0, 0, 8, -3), (0, 0, 0, 1)),
)
LABELLED = LabelledCase(
    case_id="p1_ED",
    patient_id="p1",
    image=REF,
    grid=GRID,
    modality=Modality.MR,
    phase="ED",
    role=Role.LABELLED,
    label=REF,
)
UNLABELLED = UnlabelledCase(
    case_id="p2_ED", patient_id="p2", image=REF, grid=GRID, modality=Modality.MR
)
MANIFEST = DatasetManifest(
    name="hearts",
    source_layout="acdc",
    class_names=("background", "LV"),
    source_digest=SHA,
    split_rule="the first one",
    cases=(LABELLED, UNLABELLED),
)
PROMPTS = PromptSet(
    dataset_digest=SHA,
    model_digest=SHA,
    method="pcsw",
    config_digest=SHA,
    class_names=("background", "LV"),
    cases=(
        CasePrompts(
            case_id="p2_ED",
            shape_shw=(4, 10, 12),
            objects=(
                ObjectPrompts(
                    class_index=1,
                    continuity=0.9,
                    window_start=0,
                    window_length=3,
                    accepted=True,
                    component_voxels=20,
                    slices=(
                        SlicePrompt(
                            slice_index=3,
                            box_xyxy_px=(0, 0, 11, 9),
                            points_xy_px=((5.0, 4.0),),
                            point_labels=(1,),
                        ),
                    ),
                ),
            ),
        ),
    ),
)
SCORES = ObjectScores(
    class_index=1, predicted_iou=(None, 0.5), object_score=(None, 3.0), prompted=(False, True)
)
MASKS = MaskSet(
    dataset_digest=SHA,
    prompt_digest=SHA,
    model_digest=SHA,
    backend="torch",
    config_digest=SHA,
    class_names=("background", "LV"),
    cases=(CaseMasks(case_id="p2_ED", probability_kshw=REF, objects=(SCORES,)),),
)
MODEL = TrainedModel(
    network={"name": "unet", "base_channels": 16},
    preprocessing=Preprocessing(),
    class_names=("background", "LV"),
    weights=REF,
    dataset_digest=SHA,
    method="sss",
    step=10,
)
RUN = RunRecord(
    method="sss",
    config={"steps": 10},
    config_digest=SHA,
    seed=1,
    versions={"torch": "2"},
    inputs={"dataset": SHA},
    steps=10,
    best_step=5,
    selection="validation Dice",
    metrics={"dice": 0.5},
    history=({"step": 5.0, "dice": 0.5},),
    model=REF,
    wall_time_s=1.5,
    device="cpu",
)
BUNDLE = ModelBundle(
    onnx=REF,
    model_card=REF,
    opset=18,
    inputs=(TensorContract(name="image", dtype="float32", shape=("b", 1), meaning="slices"),),
    outputs=(TensorContract(name="logits", dtype="float32", shape=("b", 2), meaning="scores"),),
    preprocessing=Preprocessing(),
    class_names=("background", "LV"),
    spacing_shw_mm=None,
    parity=(
        ParityFigure(
            shape=(1, 1, 8, 8),
            source="p1_ED",
            max_abs_difference=1e-6,
            tolerance=1e-4,
            masks_equal=True,
        ),
    ),
    model_digest=SHA,
    dataset_digest=SHA,
    intended_use="Research.",
)
POINTER = Pointer(uri="file:///a", content_digest=SHA)
PREDICTED = PredictionSet(
    model_digests=(SHA,),
    config_digest=SHA,
    class_names=("background", "LV"),
    scans=(
        PredictedScan(
            name="a.nii.gz",
            source_sha256=SHA,
            labels=REF,
            voxels={"LV": 4},
            volumes_ml={"LV": 0.072},
        ),
    ),
    failed=(FailedScan(name="b.nii", reason="It is cut."),),
)
ALL: tuple[Contract, ...] = (MANIFEST, PROMPTS, MASKS, MODEL, RUN, BUNDLE, PREDICTED, POINTER)
by_kind = pytest.mark.parametrize("contract", ALL, ids=lambda c: type(c).schema_name)


def changed(contract: Contract, **values: object) -> str:
    return json.dumps({**json.loads(contract.to_json()), **values})


@by_kind
def test_a_round_trip_changes_nothing(contract: Contract) -> None:
    text = contract.to_json()
    again = type(contract).from_json(text)
    assert again == contract
    assert again.to_json() == text
    assert again.digest == contract.digest


@by_kind
def test_an_unknown_field_is_refused_at_every_depth(contract: Contract) -> None:
    with pytest.raises(DataError, match="does not hold to its schema") as caught:
        type(contract).from_json(changed(contract, colour="red"), where="a.json")
    assert "a.json colour" in str(caught.value)
    for path in record_paths(json.loads(contract.to_json())):
        data = json.loads(contract.to_json())
        node = data
        for key in path:
            node = node[key]
        node["colour"] = "red"
        with pytest.raises(DataError):
            type(contract).from_json(json.dumps(data))


FREE_MAPS = {"network", "config", "versions", "metrics", "history"}


def record_paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where records lie inside a contract's JSON; maps with free keys are left out."""
    found: list[tuple[Any, ...]] = []
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        is_free = key in FREE_MAPS or (key == "inputs" and isinstance(value, dict))
        if isinstance(value, dict | list) and not is_free:
            if isinstance(value, dict):
                found.append((*at, key))
            found += record_paths(value, (*at, key))
    return found


@by_kind
@pytest.mark.parametrize(
    "values", [{"schema": "other"}, {"schema_version": 2}, {"schema_version": None}]
)
def test_another_kind_or_version_is_refused_not_misread(
    contract: Contract, values: dict[str, object]
) -> None:
    with pytest.raises(DataError, match="another kind or schema version") as caught:
        type(contract).from_json(changed(contract, **values), where="a.json")
    assert f"{contract.schema_name} version 1" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", b"\xff\xfe", "[" * 100_000])
def test_what_is_no_json_object_is_a_data_error(text: str | bytes) -> None:
    with pytest.raises(DataError):
        Pointer.from_json(text, where="a.json")


def test_nan_is_refused_on_the_way_out_and_in() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Grid(shape_shw=(1, 1, 1), spacing_shw_mm=(value, 1, 1), affine_ras=GRID.affine_ras)
        with pytest.raises(ValueError, match="not JSON compliant"):
            RUN.model_copy(update={"wall_time_s": value}).to_json()
    with pytest.raises(DataError):
        RunRecord.from_json(changed(RUN, wall_time_s=float("nan")))


def test_the_digest_follows_the_content() -> None:
    other = MANIFEST.model_copy(update={"name": "other"})
    assert other.digest != MANIFEST.digest
    assert len(MANIFEST.digest) == 64


def test_a_digest_must_be_one() -> None:
    for text in ("AB" * 32, "ab" * 31, ""):
        with pytest.raises(ValidationError):
            ObjectRef(uri="a", size_bytes=1, sha256=text)
    with pytest.raises(ValidationError):
        ObjectRef(uri="a", size_bytes=-1, sha256=SHA)


def test_an_unlabelled_case_has_no_label_to_reach() -> None:
    assert not hasattr(UNLABELLED, "label")
    data = json.loads(MANIFEST.to_json())
    data["cases"][1]["label"] = data["cases"][0]["label"]
    with pytest.raises(DataError, match="Extra inputs are not permitted"):
        DatasetManifest.from_json(json.dumps(data))
    with pytest.raises(DataError, match="have no mask"):
        MANIFEST.labelled(Role.UNLABELLED)


def test_a_labelled_case_needs_its_label() -> None:
    data = json.loads(MANIFEST.to_json())
    del data["cases"][0]["label"]
    with pytest.raises(DataError, match="Field required"):
        DatasetManifest.from_json(json.dumps(data))


def test_a_patient_in_two_roles_is_refused_by_name() -> None:
    data = json.loads(MANIFEST.to_json())
    data["cases"][1]["patient_id"] = "p1"
    with pytest.raises(DataError, match="patient p1 is both labelled and unlabelled"):
        DatasetManifest.from_json(json.dumps(data))


@pytest.mark.parametrize("cases", [(UNLABELLED, LABELLED), (LABELLED, LABELLED), ()])
def test_cases_are_unique_sorted_and_there(cases: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError):
        DatasetManifest(**{**dict(MANIFEST), "cases": cases})


@pytest.mark.parametrize("name", ["../p1", "a/b", "", ".hidden", "a b", "ü", "x" * 129])
def test_a_case_id_cannot_be_a_path(name: str) -> None:
    with pytest.raises(ValidationError):
        UnlabelledCase(**{**dict(UNLABELLED), "case_id": name})


def test_cases_are_found_by_role_and_by_id() -> None:
    assert MANIFEST.with_role(Role.UNLABELLED) == (UNLABELLED,)
    assert MANIFEST.labelled(Role.LABELLED) == (LABELLED,)
    assert MANIFEST.labelled(Role.TEST) == ()
    assert MANIFEST.select(["p2_ED"]) == (UNLABELLED,)
    assert MANIFEST.class_count == 2
    with pytest.raises(DataError, match="Unknown case ids") as caught:
        MANIFEST.select(["p2_ED", "nobody"])
    assert (caught.value.expected, caught.value.found) == ("p1_ED, p2_ED", "nobody")


@pytest.mark.parametrize(
    "values",
    [
        {"shape_shw": (0, 1, 1)},
        {"spacing_shw_mm": (1, 0, 1)},
        {"spacing_shw_mm": (1, -1, 1)},
        {"axes": (0, 0, 1)},
        {"axes": (1, 2, 3)},
    ],
)
def test_a_grid_must_be_sound(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Grid(**{**dict(GRID), **values})


@pytest.mark.parametrize(
    "values",
    [
        {"box_xyxy_px": None, "points_xy_px": (), "point_labels": ()},
        {"box_xyxy_px": (5, 0, 4, 1)},
        {"box_xyxy_px": (0, 5, 1, 4)},
        {"point_labels": ()},
        {"point_labels": (-1,)},
        {"slice_index": -1},
    ],
)
def test_a_prompt_must_be_sound(values: dict[str, Any]) -> None:
    good = dict(PROMPTS.cases[0].objects[0].slices[0])
    with pytest.raises(ValidationError):
        SlicePrompt(**{**good, **values})


@pytest.mark.parametrize(
    "prompt",
    [
        SlicePrompt(slice_index=4, box_xyxy_px=(0, 0, 1, 1)),
        SlicePrompt(slice_index=0, box_xyxy_px=(0, 0, 12, 1)),
        SlicePrompt(slice_index=0, box_xyxy_px=(0, 0, 1, 10)),
        SlicePrompt(slice_index=0, points_xy_px=((-1, 0),), point_labels=(1,)),
    ],
)
def test_a_prompt_outside_the_grid_is_refused(prompt: SlicePrompt) -> None:
    found = PROMPTS.cases[0].objects[0].model_copy(update={"slices": (prompt,)})
    with pytest.raises(ValidationError, match="outside the grid"):
        CasePrompts(case_id="p2_ED", shape_shw=(4, 10, 12), objects=(dict(found),))  # type: ignore[arg-type]


def test_masks_of_another_dataset_are_refused() -> None:
    require_same_dataset([SHA, SHA], SHA, what="masks")
    with pytest.raises(DataError, match="masks belong to another dataset"):
        require_same_dataset([SHA, OTHER_SHA], SHA, what="masks")


def test_a_bundle_without_proof_is_no_bundle() -> None:
    with pytest.raises(ValidationError):
        ModelBundle(**{**dict(BUNDLE), "parity": ()})


def test_an_older_model_file_loads_and_keeps_its_digest() -> None:
    model = TrainedModel(
        network={},
        preprocessing=Preprocessing(),
        class_names=("background", "LV"),
        weights=REF,
        dataset_digest=SHA,
        method="supervised",
        step=1,
    )
    assert "seen" not in json.loads(model.to_json())
    again = TrainedModel.from_json(model.to_json())
    assert (again.seen, again.digest) == (None, model.digest)
    newer = model.model_copy(update={"seen": SeenImages(labelled=(SHA,))})
    assert TrainedModel.from_json(newer.to_json()) == newer
    assert newer.digest != model.digest
