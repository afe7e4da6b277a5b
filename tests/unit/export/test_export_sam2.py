"""SAM-2's graphs: equal to the package's modules, gated, published whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from omegaconf import OmegaConf
from onnx import numpy_helper

from sssflow.contracts.sam2_graphs import GRAPHS, SAM2_BUNDLE_FILE, Sam2Bundle, graph_file
from sssflow.errors import InternalError, UsageError
from sssflow.export import sam2_stage
from sssflow.export.config import Sam2ExportConfig
from sssflow.export.sam2_gates import PROMPT_GRID
from sssflow.export.sam2_modules import RealRotaryAttention, constant_positions, rules_of
from sssflow.sam.build import build_sam2, model_config
from sssflow.sam.memory_plan import attended
from sssflow.sam.weights_io import packaged_weights
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import sha256_file, verified_path

SIZE_PX = 128
CONFIG = Sam2ExportConfig(sizes_px=(SIZE_PX,), gate_clips=2)


@pytest.fixture
def ready_graphs(monkeypatch: pytest.MonkeyPatch, nano_bundle: Path) -> dict[str, onnx.ModelProto]:
    """The graphs that the exporter gave before, in its place; a test may harm one."""
    graphs = {name: onnx.load(nano_bundle / graph_file(name, SIZE_PX)) for name in GRAPHS}
    monkeypatch.setattr(sam2_stage, "make_graph", lambda name, model: graphs[name])
    return graphs


def _harm(graph: onnx.ModelProto, factor: float) -> None:
    """Scale the largest weight."""
    weight = max(graph.graph.initializer, key=lambda w: len(w.raw_data))
    values = numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize("layer", ["self_attn", "cross_attn_image"])
@pytest.mark.parametrize("pointers", [0, 4])
def test_the_real_rotary_code_gives_the_bits_of_the_complex_one(layer, pointers):
    model = build_sam2("nano", input_size=SIZE_PX)
    original = getattr(model.memory_attention.layers[0], layer)
    real = RealRotaryAttention(original, SIZE_PX // 16)
    tokens, width = (SIZE_PX // 16) ** 2, original.kv_in_dim
    repeats = 3 if layer == "cross_attn_image" else 1
    q = torch.randn(2, tokens, original.embedding_dim)
    k = torch.randn(2, repeats * tokens + pointers, width)
    v = torch.randn_like(k)
    if layer == "self_attn" and pointers:
        return  # self-attention has no pointers
    with torch.no_grad():
        expected = original(q, k, v, num_k_exclude_rope=pointers)
        found = real(q, k, v, num_k_exclude_rope=pointers)
    assert torch.equal(found, expected)


def test_the_plan_of_a_tracked_slice_is_the_hand_computed_one():
    rules = rules_of(build_sam2("nano", input_size=64), hints=True)
    assert (rules.memory_slots, rules.max_pointers) == (7, 16)
    # Slice 5 of 12: prompted 2 and 9, tracked 3 and 4; 9 lies ahead, so its pointer is left.
    plan = attended(rules, 5, 12, conditioning=(2, 9), tracked={3, 4}, reverse=False)
    assert plan.slices == (2, 9, 3, 4)
    assert plan.slots == (6, 6, 1, 0)
    assert plan.pointers == (2, 4, 3)
    assert plan.pointer_times == pytest.approx((3 / 11, 1 / 11, 2 / 11))
    back = attended(rules, 6, 12, conditioning=(2, 9), tracked={7, 8}, reverse=True)
    assert (back.slices, back.slots) == ((2, 9, 8, 7), (6, 6, 1, 0))
    assert back.pointers == (9, 7, 8)


@pytest.mark.parametrize("size", ["nano", "tiny", "small", "base_plus", "large"])
@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_no_published_model_asks_for_what_the_graphs_leave_out(size, version):
    config = OmegaConf.to_container(model_config(size, version=version))
    defaults = {
        "memory_temporal_stride_for_eval": 1,
        "max_cond_frames_in_attn": -1,
        "non_overlap_masks_for_mem_enc": False,
        "binarize_mask_from_pts_for_mem_enc": False,
        "soft_no_obj_ptr": False,
        "sam_mask_decoder_extra_args": None,
    }
    assert {key: config.get(key, value) for key, value in defaults.items()} == defaults
    needed = ("directly_add_no_mem_embed", "use_high_res_features_in_sam", "pred_obj_scores")
    assert all(config[key] is True for key in needed)


def test_positions_are_constant_only_while_graphs_are_made():
    model = build_sam2("nano", input_size=64)
    trunk = model.image_encoder.trunk
    with constant_positions(model):
        assert trunk._get_pos_embed((16, 16)) is trunk._get_pos_embed((16, 16))
    assert "_get_pos_embed" not in vars(trunk)


def test_a_bundle_names_every_graph_by_digest_with_its_tensors_and_gates(nano_bundle):
    bundle = load_contract(Sam2Bundle, nano_bundle / SAM2_BUNDLE_FILE)
    assert bundle.sizes_px() == (SIZE_PX,)
    assert bundle.weights_sha256 == sha256_file(packaged_weights())
    assert bundle.rules.hints
    for name in GRAPHS:
        entry = bundle.graph(name, SIZE_PX)
        graph = onnx.load(verified_path(entry.file, base=nano_bundle))
        assert [i.name for i in graph.graph.input] == [t.name for t in entry.inputs]
        assert [o.name for o in graph.graph.output] == [t.name for t in entry.outputs]
        assert [w for w in graph.graph.initializer if w.external_data] == []
        assert {o.version for o in graph.opset_import if o.domain == ""} == {18}
        # The bicubic resizing of Hiera's position embedding was folded away.
        assert not any(
            a.s == b"cubic" for n in graph.graph.node if n.op_type == "Resize" for a in n.attribute
        )
        facts = {p.key: p.value for p in graph.metadata_props}
        assert facts["sssflow.graph"] == name
        assert facts["sssflow.weights_sha256"] == bundle.weights_sha256
        assert json.loads(facts["sssflow.image_mean"]) == [0.485, 0.456, 0.406]
        assert facts["sssflow.prompt_padding"].startswith("none")
    assert {(g.size_px, g.found <= g.limit) for g in bundle.gates} == {(SIZE_PX, True)}
    kinds = {g.gate for g in bundle.gates if g.gate.startswith("predictor")}
    assert len(kinds) == 12  # box, points, both, mask; logits, flips, IoU
    assert set(PROMPT_GRID) >= {(1, 0), (8, 3), (5, 12)}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_broken_graph_fails_its_gate_and_publishes_nothing(name, ready_graphs, tmp_path):
    _harm(ready_graphs[name], 1.5)
    with pytest.raises(InternalError, match="nothing was published") as caught:
        sam2_stage.run(CONFIG, tmp_path / "out")
    assert name.split("_")[0] in caught.value.describe()
    assert list((tmp_path / "out").rglob("*")) == []


def test_a_graph_with_another_tensor_name_is_refused(ready_graphs, tmp_path):
    graph = ready_graphs["memory_encoder"].graph
    for node in graph.node:
        node.output[:] = ["other" if o == "pointer" else o for o in node.output]
        node.input[:] = ["other" if i == "pointer" else i for i in node.input]
    next(o for o in graph.output if o.name == "pointer").name = "other"
    with pytest.raises(InternalError, match="other tensors than its contract"):
        sam2_stage.run(CONFIG, tmp_path / "out")
    assert not (tmp_path / "out" / SAM2_BUNDLE_FILE).exists()


def test_a_failing_export_leaves_the_bundle_before_it_alone(ready_graphs, tmp_path):
    out = tmp_path / "out"
    (out / ".sam2-export").mkdir(parents=True)  # as a killed export leaves it
    (out / ".sam2-export" / "leftover").write_text("x")
    first = sam2_stage.run(CONFIG, out)
    assert not (out / ".sam2-export").exists()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert len(before) == len(GRAPHS) + 1
    _harm(ready_graphs["encoder"], 1.5)
    with pytest.raises(InternalError, match="encoder"):
        sam2_stage.run(CONFIG, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert load_contract(Sam2Bundle, out / SAM2_BUNDLE_FILE) == first


def test_a_kill_while_files_are_replaced_leaves_no_contract(ready_graphs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sam2_stage.run(CONFIG, out)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sam2_stage, "reference", killed)
    with pytest.raises(KeyboardInterrupt):
        sam2_stage.run(CONFIG, out)
    assert not (out / SAM2_BUNDLE_FILE).exists()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_smaller_precisions_pass_the_gates_of_dice_and_flips(precision, ready_graphs, tmp_path):
    config = CONFIG.model_copy(update={"precision": precision})
    bundle = sam2_stage.run(config, tmp_path / "out")
    assert bundle.precision == precision
    assert {g.gate for g in bundle.gates} == {
        *(["largest value for half precision"] if precision == "fp16" else []),
        "loss of Dice",
        "flipped pixels",
        "flipped pixels of all four masks",
        "error of the predicted IoU",
    }
    whole = len(ready_graphs["encoder"].SerializeToString())
    assert bundle.graph("encoder", SIZE_PX).file.size_bytes < 0.7 * whole


@pytest.mark.parametrize(
    ("output", "factors", "gate"),
    [
        ("iou", [np.nan] * 4, "predicted IoU"),
        ("iou", [-1.0] * 4, "predicted IoU"),
        ("masks", [1.0, 0.0, 0.0, 0.0], "all four masks"),
    ],
)
def test_a_smaller_graph_that_is_wrong_for_one_click_alone_is_refused(
    output, factors, gate, ready_graphs, tmp_path
):
    """A box keeps the first mask whatever its IoU; a click chooses the best of the others."""
    graph = ready_graphs["decoder"].graph
    for node in graph.node:
        node.output[:] = ["former" if o == output else o for o in node.output]
        node.input[:] = ["former" if i == output else i for i in node.input]
    shape = (1, 4) if output == "iou" else (1, 4, 1, 1)
    values = np.asarray(factors, np.float32).reshape(shape)
    graph.initializer.append(numpy_helper.from_array(values, "factors"))
    graph.node.append(onnx.helper.make_node("Mul", ["former", "factors"], [output]))
    config = CONFIG.model_copy(update={"precision": "bf16"})
    with pytest.raises(InternalError, match="nothing was published") as caught:
        sam2_stage.run(config, tmp_path / "out")
    assert gate in caught.value.describe()


@pytest.mark.parametrize("name", ["encoder", "memory_attention"])
def test_half_precision_is_refused_where_a_value_inside_is_too_large_for_it(
    name, ready_graphs, tmp_path
):
    """ONNX Runtime on a CPU computes half precision in single, and gives the right masks."""
    graph = ready_graphs[name].graph
    output = graph.output[-1].name
    for node in graph.node:
        node.output[:] = ["former" if o == output else o for o in node.output]
    for factor, source, target in ((1e6, "former", "huge"), (1e-6, "huge", output)):
        value = numpy_helper.from_array(np.asarray(factor, np.float32), f"times_{target}")
        graph.initializer.append(value)
        graph.node.append(onnx.helper.make_node("Mul", [source, value.name], [target]))
    config = CONFIG.model_copy(update={"precision": "fp16"})
    with pytest.raises(InternalError, match="nothing was published") as caught:
        sam2_stage.run(config, tmp_path / "out")
    assert "largest value for half precision <= 65504" in caught.value.describe()


def test_a_precision_over_its_limits_is_refused_with_figures(ready_graphs, tmp_path):
    config = CONFIG.model_copy(update={"precision": "int8", "flip_tolerance": 1e-6})
    with pytest.raises(InternalError, match="nothing was published") as caught:
        sam2_stage.run(config, tmp_path / "out")
    assert "flipped pixels" in caught.value.describe()
    assert "<= 1e-06" in caught.value.describe()
    assert not (tmp_path / "out" / SAM2_BUNDLE_FILE).exists()


@pytest.mark.parametrize("sizes", [(100,), (32,), (128, 128), ()])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes_px"):
        Sam2ExportConfig(sizes_px=sizes)


def test_an_official_size_without_weights_is_refused(tmp_path):
    with pytest.raises(UsageError, match="needs a checkpoint"):
        sam2_stage.run(Sam2ExportConfig(size="tiny"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_an_official_checkpoint_exports_behind_every_gate(version, tmp_path):
    torch.manual_seed(1)
    model = build_sam2("tiny", version=version, input_size=SIZE_PX)
    torch.nn.init.normal_(model.image_encoder.trunk.pos_embed, std=0.02)
    path = tmp_path / "tiny.pt"
    torch.save({"model": model.state_dict()}, path)
    config = CONFIG.model_copy(update={"size": "tiny", "version": version, "weights": str(path)})
    bundle = sam2_stage.run(config, tmp_path / "out")
    assert (bundle.variant, bundle.sam2_version) == ("tiny", version)
    assert (bundle.width, bundle.memory_width, bundle.rules.hints) == (256, 64, False)
    assert bundle.rules.pointers_signed is (version == "2.1")
