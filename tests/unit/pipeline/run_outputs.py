"""Results of a run that never was: contracts with their files, and pointers to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.bundle import ModelBundle, ParityFigure
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.evaluation import EvaluationSummary, Figure, ModelFigures, PairedGain
from sssflow.contracts.model import Preprocessing
from sssflow.contracts.run import RunRecord
from sssflow.pipeline.store import write_pointer
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference
from sssflow.storage.places import open_place, push_tree
from sssflow.storage.uri import to_path

DIGEST = "1" * 64


def record(method: str, model: ObjectRef | None = None) -> RunRecord:
    return RunRecord(
        method=method,
        config={},
        config_digest=DIGEST,
        seed=1,
        versions={},
        inputs={},
        steps=1,
        best_step=1,
        selection="last",
        metrics={},
        model=model or ObjectRef(uri="model/model.json", size_bytes=0, sha256=DIGEST),
        wall_time_s=1.0,
        device="cpu",
    )


def summary(files: dict[str, ObjectRef]) -> EvaluationSummary:
    figures = {
        name: ModelFigures(
            name=name,
            model_digest=DIGEST,
            method=name,
            step=1,
            strict={"dice": Figure(value=value)},
            ssl4mis={},
            per_class={},
        )
        for name, value in (("supervised", 0.5), ("sss", 0.75))
    }
    return EvaluationSummary(
        dataset_name="d",
        dataset_digest=DIGEST,
        split_rule="by hand",
        roles=("test",),
        cases=1,
        patients=1,
        distance_unit="mm",
        class_names=("background", "disc"),
        config={},
        config_digest=DIGEST,
        versions={},
        conventions={},
        models=tuple(figures.values()),
        gain=PairedGain(
            metric="dice",
            baseline="supervised",
            headline="sss",
            gain=0.25,
            low=None,
            high=None,
            p_value=None,
            test="none",
            patients=1,
        ),
        files=files,
    )


def make_outputs(store: Path, manifest: DatasetManifest) -> dict[str, str]:
    """Pointers to the results of a run that never was, in the folder `store`."""
    found = {"dataset": write_pointer(manifest, save_contract(manifest, store / "d" / "m.json"))}
    for name, method in (("warmup", "supervised"), ("baseline", "supervised"), ("headline", "sss")):
        model = store / name / "model" / "model.json"
        model.parent.mkdir(parents=True)
        model.write_text(name)
        made = record(method, reference(model, base=store / name))
        path = save_contract(made, store / name / "run.json")
        (store / name / "tensorboard").mkdir()
        (store / name / "tensorboard" / "curve").write_text(name)
        found[name] = write_pointer(made, path)
    evaluation = store / "evaluate"
    (evaluation / "metrics").mkdir(parents=True)
    (evaluation / "metrics" / "cases.csv").write_text("case\n")
    (evaluation / "report.html").write_text("<html></html>")
    told = summary({"report": reference(evaluation / "report.html")})
    found["evaluation"] = write_pointer(told, save_contract(told, evaluation / "evaluation.json"))
    bundle_folder = store / "export"
    bundle_folder.mkdir()
    (bundle_folder / "student.onnx").write_bytes(b"graph")
    ref = reference(bundle_folder / "student.onnx")
    bundle = ModelBundle(
        onnx=ref,
        model_card=ref,
        opset=18,
        inputs=(),
        outputs=(),
        preprocessing=Preprocessing(),
        class_names=("background", "disc"),
        spacing_shw_mm=None,
        parity=(
            ParityFigure(
                shape=(1,), source="s", max_abs_difference=0.0, tolerance=1.0, masks_equal=True
            ),
        ),
        model_digest=DIGEST,
        dataset_digest=DIGEST,
        intended_use="tests",
    )
    found["bundle"] = write_pointer(bundle, save_contract(bundle, bundle_folder / "bundle.json"))
    return found


def move_to_s3(outputs: Mapping[str, str], here: Path, address: str) -> dict[str, str]:
    """Publish the results of the folder `here` at an address, and point there."""
    # A result lies two levels below the root of a store; these pointers lie one level below.
    moved = {}
    for name, text in outputs.items():
        old = json.loads(text)
        folder = to_path(old["uri"]).parent
        push_tree(folder, open_place(f"{address}/{folder.name}/{DIGEST[:24]}"))
        uri = f"{address}/{folder.name}/{DIGEST[:24]}/{to_path(old['uri']).name}"
        moved[name] = json.dumps({**old, "uri": uri})
    shutil.rmtree(here)
    return moved
