"""One run of a benchmark, in this process: resumption, and networks whose mean is measured."""

from __future__ import annotations

import csv
import errno
from pathlib import Path

import pytest

from sssflow.bench.config import BenchConfig
from sssflow.bench.plan import RunOrder, settings_beside, settings_of
from sssflow.bench.protocol import Protocol
from sssflow.bench.run import finished, make_chain, run
from sssflow.bench.scores import read_scores
from sssflow.bench.shared import link_files, new_trainings_first
from sssflow.contracts.bench import RunKey
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.prompts import PromptSet
from sssflow.contracts.run import RunRecord
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import UsageError
from sssflow.ingest import relabel
from sssflow.ingest.config import IngestConfig
from sssflow.sam.generalist import generalist_digest
from sssflow.storage.contracts import load_contract, save_contract


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def order_for(
    protocol: Protocol,
    whole: Path,
    out: Path,
    *,
    method: str = "supervised",
    variant: str = "default",
    labelled: int = 2,
    lines: tuple[str, ...] = (),
) -> RunOrder:
    key = RunKey(method=method, variant=variant, labelled=labelled, seed=1)
    settings = settings_of(protocol, BenchConfig(settings=lines), key)
    manifest = relabel.run(whole, labelled, out / "data", IngestConfig())
    return RunOrder(
        key=key,
        protocol=protocol.name,
        experiment=settings,
        beside=settings_beside(settings, variant),
        warmup_share=0.4,
        dataset=out / "data" / relabel.MANIFEST,
        dataset_digest=manifest.digest,
        out=out / "run",
        chains=out / "chains",
        trainings=out / "trainings",
    )


def test_a_stopped_run_goes_on_and_ends_like_one_that_was_not_stopped(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    lines = ("train.checkpoint_every_steps=2",)
    stopped = order_for(tiny_protocol, whole, tmp_path / "stopped", lines=lines)

    def stop_at_four(message: str) -> None:
        if "step 4 of 6" in message:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(stopped, stop_at_four)
    said: list[str] = []
    result = run(stopped, said.append)
    assert [line.split(",")[0] for line in said if "step" in line] == [
        f"supervised: step {step} of 6" for step in (3, 4, 5, 6)
    ]
    plain = run(order_for(tiny_protocol, whole, tmp_path / "plain", lines=lines))
    assert result.model_digest == plain.model_digest
    assert result.strict["dice"] == plain.strict["dice"]

    said.clear()
    assert run(stopped, said.append) == result
    assert said == [], "a finished run is taken over"
    other = stopped.model_copy(update={"warmup_share": 0.3})
    with pytest.raises(UsageError, match="other settings or data"):
        run(other)


def test_a_finished_run_whose_scores_are_lost_is_measured_again_and_not_trained_again(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    order = order_for(tiny_protocol, whole, tmp_path)
    result = run(order)
    scores = order.out / result.cases.uri
    text = scores.read_bytes()
    for damage in (lambda: scores.write_bytes(text[:-20]), scores.unlink):
        damage()
        assert finished(order) is None
        assert not (order.out / "result.json").exists()
        said: list[str] = []
        again = run(order, said.append)
        assert said == ["evaluating"]
        assert (again.cases, again.model_digest) == (result.cases, result.model_digest)
        assert finished(order) == again


def test_two_networks_of_different_seeds_are_measured_by_their_mean(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    order = order_for(tiny_protocol, whole, tmp_path, variant="two")
    result = run(order)
    models = [
        load_contract(TrainedModel, order.out / name / "model" / "model.json")
        for name in ("train", "train2")
    ]
    assert models[0].weights.sha256 != models[1].weights.sha256
    assert (result.steps_of_warmup, result.steps_of_training, result.steps_in_all) == (0, 6, 12)
    assert result.weights_bytes == sum(model.weights.size_bytes for model in models)
    assert set(result.wall_time_s) == {"train", "train2", "evaluate"}

    with (order.out / result.cases.uri).open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"train", "train2", "average"}
    wanted = [float(r["strict_dice"]) for r in rows if r["model"] == "average" and r["strict_dice"]]
    tables = read_scores(result, order.out).tables
    assert {"strict_hd95_pooled_mm", "strict_assd_mm"} <= set(tables)
    table = tables["strict_dice"]
    assert table.score_nc[~(table.score_nc != table.score_nc)].tolist() == wanted


def test_variants_of_the_test_alone_share_one_training(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    plain = order_for(tiny_protocol, whole, tmp_path)
    flipped = order_for(tiny_protocol, whole, tmp_path, variant="flips")
    flipped = flipped.model_copy(update={"out": tmp_path / "flipped"})
    two = order_for(tiny_protocol, whole, tmp_path, variant="two")
    rare = order_for(tiny_protocol, whole, tmp_path, variant="rare")
    said: list[str] = []
    results = [run(plain, said.append), run(flipped, said.append)]
    assert len([line for line in said if "step" in line]) == 6, "trained once"
    assert results[0].model_digest == results[1].model_digest
    assert results[0].order_digest != results[1].order_digest
    assert new_trainings_first([plain, flipped, two, rare]) == [plain, two, rare, flipped]


def test_linked_files_are_whole_after_a_call_that_was_cut_off(tmp_path: Path) -> None:
    source, target = tmp_path / "training", tmp_path / "run" / "train"
    for name in ("run.json", "model/model.json", "checkpoints/step_1/state", ".lock"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (target / "model").mkdir(parents=True)
    (target / "model" / "model.json").write_text("half a c")
    for _ in range(2):
        link_files(source, target)
        found = {
            str(p.relative_to(target)): p.read_text() for p in target.rglob("*") if p.is_file()
        }
        assert found == {"run.json": "run.json", "model/model.json": "model/model.json"}
    assert (target / "run.json").samefile(source / "run.json")


def test_where_there_are_no_hard_links_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.json").write_text("record")
    link_files(tmp_path / "training", tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == "record"


def test_the_digest_of_an_order_names_the_networks_beside_too(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    order = order_for(tiny_protocol, whole, tmp_path, variant="two")
    assert [train.seed for train in order.beside] == [100_001]
    assert order.digest != order.model_copy(update={"beside": ()}).digest
    assert order.digest == RunOrder.model_validate_json(order.model_dump_json()).digest


def test_semisam_asks_sam2_after_it_saw_the_labelled_cases_and_a_second_run_shares_it(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    lines = ("adapt.steps=2", "generalist.input_size=64", "sam.input_size=64")
    order = order_for(tiny_protocol, whole, tmp_path, method="semisam", labelled=1, lines=lines)
    said: list[str] = []
    result = run(order, said.append)
    assert result.steps_in_all == 6
    assert said.count("SAM-2 sees the labelled cases") == 1
    (adapted,) = tmp_path.glob("chains/sam2-*/sam2.json")
    record = load_contract(RunRecord, tmp_path / "run" / "train" / "run.json")
    weights = load_contract(PromptableWeights, adapted).weights.sha256
    config = order.experiment.generalist
    assert record.inputs["generalist"] == generalist_digest(config, weights)

    again = order.model_copy(update={"out": tmp_path / "again"})
    run(again, said.append)
    assert said.count("SAM-2 sees the labelled cases") == 1


def test_a_damaged_part_of_a_shared_chain_is_made_again_and_the_others_are_taken_over(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    lines = ("adapt.steps=1", "sam.input_size=64", "pipeline.scored_roles=[]")
    order = order_for(tiny_protocol, whole, tmp_path, method="sss", lines=lines)
    said: list[str] = []
    chain = make_chain(order, said.append)
    assert {line for line in said if "started" in line} == {
        "adapt: started",
        "sam2_unlabelled: started",
    }
    (seconds,) = tmp_path.glob("chains/*/sam2_unlabelled.seconds")
    seconds.write_text("1000.0")
    before = {path: path.read_bytes() for path in tmp_path.glob("chains/**/*.b2nd")}
    assert len(before) == 4, "two coarse masks, two of SAM-2"
    (weights,) = tmp_path.glob("chains/sam2-*/nano.safetensors")
    before[weights] = weights.read_bytes()
    for path, content in before.items():
        path.write_bytes(content[:-3])
        times = {other: other.stat().st_mtime_ns for other in before if other.parent != path.parent}
        said.clear()
        again = make_chain(order, said.append)
        assert len([line for line in said if "started" in line]) == 1
        assert path.read_bytes() == content
        if path.parent.name == "masks":
            assert times == {other: other.stat().st_mtime_ns for other in times}
        assert again.wall_time_s["sam2_unlabelled"] == 1000.0, "a repair is not the making"
        assert again.masks == chain.masks
    said.clear()
    make_chain(order, said.append)
    assert said == []
    result = run(order)
    assert (result.steps_of_warmup, result.steps_of_training, result.steps_in_all) == (2, 4, 6)


def test_masks_of_prompts_that_were_made_anew_since_are_not_taken_over(
    tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    lines = ("adapt.steps=0", "sam.input_size=64", "pipeline.scored_roles=[]")
    order = order_for(tiny_protocol, whole, tmp_path, method="sss", lines=lines)
    (masks,) = make_chain(order, str).masks
    prompts = masks.parents[1] / "prompts" / "prompts.json"
    first, before = load_contract(PromptSet, prompts), load_contract(MaskSet, masks)
    assert before.prompt_digest == first.digest
    # Made anew, as another kind of machine would; then the process is ended.
    one = first.cases[0].model_copy(update={"objects": ()})
    save_contract(first.model_copy(update={"cases": (one, *first.cases[1:])}), prompts)
    make_chain(order, str)
    after = load_contract(MaskSet, masks)
    assert after.prompt_digest == load_contract(PromptSet, prompts).digest
    assert after.cases[0].objects == ()
