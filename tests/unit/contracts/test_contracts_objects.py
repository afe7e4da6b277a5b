"""Objects of prompts and masks, and tensors of graphs: what later code indexes by is bounded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from sssflow.contracts.base import Contract, ObjectRef
from sssflow.contracts.bundle import TensorContract
from sssflow.contracts.masks import CaseMasks, MaskSet, ObjectScores
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, PromptSet, SlicePrompt
from sssflow.errors import DataError

SHA = "0" * 64
CLASSES = ("background", "LV")
PROMPTED = ObjectPrompts(
    class_index=1,
    continuity=0.9,
    window_start=0,
    window_length=3,
    accepted=True,
    component_voxels=20,
    slices=(SlicePrompt(slice_index=3, box_xyxy_px=(0, 0, 11, 9)),),
)
PROMPTS = PromptSet(
    dataset_digest=SHA,
    model_digest=SHA,
    method="pcsw",
    config_digest=SHA,
    class_names=CLASSES,
    cases=(CasePrompts(case_id="p2_ED", shape_shw=(4, 10, 12), objects=(PROMPTED,)),),
)
SCORES = ObjectScores(
    class_index=1, predicted_iou=(None, 0.5), object_score=(None, 3.0), prompted=(False, True)
)
REF = ObjectRef(uri="a.b2nd", size_bytes=1, sha256=SHA)
MASKS = MaskSet(
    dataset_digest=SHA,
    prompt_digest=SHA,
    model_digest=SHA,
    backend="torch",
    config_digest=SHA,
    class_names=CLASSES,
    cases=(CaseMasks(case_id="p2_ED", probability_kshw=REF, objects=(SCORES,)),),
)


@pytest.mark.parametrize("contract", [PROMPTS, MASKS], ids=lambda c: c.schema_name)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda case: case["objects"][0].update(class_index=2), "p2_ED: class 2 of 1"),
        (lambda case: case["objects"][0].update(class_index=2**70), "p2_ED: class 118059"),
        (lambda case: case["objects"].append(case["objects"][0]), "p2_ED: a class stands twice"),
    ],
)
def test_an_object_has_one_of_the_classes(
    contract: Contract, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    data = json.loads(contract.to_json())
    change(data["cases"][0])
    with pytest.raises(DataError, match=said):
        type(contract).from_json(json.dumps(data))


@pytest.mark.parametrize("contract", [PROMPTS, MASKS], ids=lambda c: c.schema_name)
def test_a_case_stands_once(contract: Contract) -> None:
    data = json.loads(contract.to_json())
    data["cases"] *= 2
    with pytest.raises(DataError, match="case p2_ED stands twice"):
        type(contract).from_json(json.dumps(data))


def test_scores_have_a_value_per_slice() -> None:
    for name in ("predicted_iou", "object_score", "prompted"):
        with pytest.raises(ValidationError, match="one value per slice"):
            ObjectScores(**{**dict(SCORES), name: ()})


@pytest.mark.parametrize("dtype", ["", "float16", "float32\n", "../../x"])
def test_a_tensor_has_a_type_that_servers_know(dtype: str) -> None:
    with pytest.raises(ValidationError):
        TensorContract(name="x", dtype=dtype, shape=("b",), meaning="in")
