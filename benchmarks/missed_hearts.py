"""What the models of a phantom bench do with patients of a disease that no labelled patient has.

    sssflow bench --protocol phantoms-lite --methods ... --seeds ... OUT
    python benchmarks/missed_hearts.py OUT

Every run's saved network (the averaged one where the method has a teacher) is applied to the
patients that were unlabelled in its training and to the test patients; nothing is chosen by it.
The truth of the unlabelled ones is known because phantoms are drawn; no training read it.
`Dice` is the mean over cases and classes. `lost` is the share of a heart's voxels that the network
calls background with a probability of at least unimatch_v2's default threshold: what its teacher
would teach wrongly.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from sssflow.contracts.bench import RunResult
from sssflow.contracts.dataset import Case, DatasetManifest, Role
from sssflow.networks.predict import predict_probabilities
from sssflow.networks.trained import LoadedModel, load_model
from sssflow.storage.contracts import load_contract
from sssflow.training.data import read_image, read_label
from sssflow.training.method_config import UniMatchV2Config
from sssflow.training.validate import dice_by_class

THRESHOLD = UniMatchV2Config().confidence_threshold
KNOWN, NEW = "disease of a labelled patient", "another disease"


def group_of(scans: Path, patient: str) -> str:
    lines = (scans / patient / "Info.cfg").read_text("utf-8").splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("Group"))


def measured(model: LoadedModel, case: Case, base: Path, classes: int) -> tuple[float, float]:
    """Mean Dice over the classes, and the share of the heart lost with confidence."""
    preprocessing = model.description.preprocessing
    image = read_image(case, base, preprocessing).numpy()
    truth = read_label(case, base, classes)
    probability = predict_probabilities(model.net, image, preprocessing)
    found = probability.argmax(0).astype(np.uint8)
    lost = (probability[0] >= THRESHOLD) & (truth > 0)
    return float(np.nanmean(dice_by_class(found, truth, classes))), lost.sum() / (truth > 0).sum()


def rows_of(out: Path, result: RunResult, folder: Path) -> dict[tuple[str, str], list]:
    """(role, kind of disease) to the figures of its cases."""
    every = out / "data" / f"all-s{result.key.seed}"
    given = out / "data" / f"l{result.key.labelled:g}-s{result.key.seed}"
    split = load_contract(DatasetManifest, given / "manifest.json")
    everything = load_contract(DatasetManifest, every / "dataset" / "manifest.json")
    truth = {c.case_id: c for c in everything.cases}
    group = {c.patient_id: group_of(every / "scans", c.patient_id) for c in split.cases}
    known = {group[c.patient_id] for c in split.cases if c.role is Role.LABELLED}
    model = load_model((folder / result.model.uri).parent)
    found = defaultdict(list)
    for case in split.cases:
        if case.role in (Role.UNLABELLED, Role.TEST):
            kind = KNOWN if group[case.patient_id] in known else NEW
            case_with_label = truth[case.case_id]
            figures = measured(model, case_with_label, every / "dataset", len(split.class_names))
            found[case.role.value, kind].append(figures)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of a bench on phantoms")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)  # small slices: more threads wait for each other
    print("| method | variant | seed | patients | kind | cases | Dice | lost |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    total = defaultdict(list)
    for folder in sorted((out / "runs").iterdir()):
        result = load_contract(RunResult, folder / "result.json")
        for (role, kind), figures in sorted(rows_of(out, result, folder).items()):
            key = result.key
            total[key.method, key.variant, "all", role, kind] += figures
            print_row((key.method, key.variant, key.seed, role, kind), figures)
    for names, figures in sorted(total.items()):
        print_row(names, figures)


def print_row(names: tuple[object, ...], figures: list) -> None:
    dice, lost = np.mean(figures, axis=0)
    cells = [*map(str, names), str(len(figures)), f"{100 * dice:.1f}", f"{100 * lost:.1f}"]
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
