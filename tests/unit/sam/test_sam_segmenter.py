"""SAM-2 as a student: shapes and gradients of every part, prompts that steer it, memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt
from sssflow.errors import DataError, UsageError
from sssflow.networks.config import NetworkConfig, Sam2StudentConfig
from sssflow.networks.registry import build_network
from sssflow.sam.clip_masks import ClipMasks
from sssflow.sam.memory_bank import BankRules, ClassBanks
from sssflow.sam.segmenter import Sam2Segmenter, load_start_weights, start_weights_digest


def student(size: str = "nano", **settings: object) -> Sam2Segmenter:
    config = NetworkConfig.model_validate(
        {"name": "sam2", "sam2": {"size": size, "weights": "random", **settings}}
    )
    net = build_network(config, 3, seed=0)
    assert isinstance(net, Sam2Segmenter)
    return net


def clip(side: int, slices: int = 4) -> Tensor:
    """A bright square that drifts to the right, on grey noise."""
    image = 0.2 + 0.05 * torch.rand(slices, 1, side, side, generator=Generator().manual_seed(1))
    for t in range(slices):
        image[t, 0, 16:40, 16 + 2 * t : 40 + 2 * t] = 0.9
    return image


def square(*at: int, class_index: int = 1) -> ObjectPrompts:
    """The square of `clip` prompted by its box and centre on some slices."""
    return ObjectPrompts(
        class_index=class_index,
        continuity=1.0,
        window_start=0,
        window_length=2,
        accepted=True,
        component_voxels=10,
        slices=tuple(
            SlicePrompt(
                slice_index=t,
                box_xyxy_px=(16.0 + 2 * t, 16.0, 39.0 + 2 * t, 39.0),
                points_xy_px=((28.0 + 2 * t, 28.0),),
                point_labels=(1,),
            )
            for t in at
        ),
    )


def asked(net: Sam2Segmenter, image: Tensor, *objects: ObjectPrompts, **settings) -> ClipMasks:
    options = {"memory": "self_sorting", "draws": 2, "banks": None, **settings}
    return net.clip_masks(
        net.features(image), image, objects, generator=Generator().manual_seed(0), **options
    )


def has_gradient(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "side", "channels"), [("nano", 64, 128), ("tiny", 128, 256), ("small", 128, 256)]
)
def test_every_part_of_sam2_has_its_shape_and_a_gradient(
    size: str, side: int, channels: int
) -> None:
    net = student(size).train()
    image = clip(side, 3)
    maps = net.features(image)
    assert [tuple(m.shape) for m in maps] == [
        (3, channels, side // s, side // s) for s in (4, 8, 16)
    ]
    assert net.head(maps).shape == (3, 3, side, side)
    masks = net.clip_masks(
        maps, image, [square(0)], memory="self_sorting", draws=1, banks=None,
        generator=Generator().manual_seed(0),
    )  # fmt: skip
    assert masks.logits_ntyx.shape == (1, 3, side // 4, side // 4)
    (masks.logits_ntyx.square().mean() + masks.iou_nt.mean() + masks.score_nt.mean()).backward()
    for name in ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "memory_attention",
                 "memory_encoder"):  # fmt: skip
        assert has_gradient(getattr(net.sam, name)), name
    assert not has_gradient(net.coarse), "the coarse head has no part in prompted masks"


@pytest.mark.parametrize("name", ["base_plus", "large"])
@pytest.mark.slow
def test_the_larger_sizes_build_as_students_too(name: str) -> None:
    net = student(name).eval()
    with torch.no_grad():
        assert net(clip(64, 1)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("kind", "reads"), [("pyramid", 3), ("fine", 1)])
def test_the_coarse_head_reads_the_maps_that_it_is_told_to(kind: str, reads: int) -> None:
    net = student(coarse_head=kind).train()
    maps = [m.detach().requires_grad_() for m in net.features(clip(64, 2))]
    net.head(maps).square().mean().backward()
    assert sum(m.grad is not None and bool(m.grad.abs().sum() > 0) for m in maps) == reads


def test_an_input_that_is_no_square_still_has_coarse_logits() -> None:
    assert student().eval()(torch.rand(1, 1, 64, 96)).shape == (1, 3, 64, 96)


@pytest.mark.parametrize("memory", ["self_sorting", "temporal"])
def test_the_packaged_nano_finds_the_square_on_prompted_and_remembered_slices(memory: str) -> None:
    net = student().eval()
    load_start_weights(net, Sam2StudentConfig())
    image = clip(96)
    with torch.no_grad():
        masks = asked(net, image, square(1), memory=memory)
        logits = masks.merged_logits(3, (96, 96), present_only=True)
    assert masks.answered_nt.all()
    for t in range(4):
        found, true = logits[t].argmax(0) == 1, image[t, 0] > 0.5
        overlap = 2 * (found & true).sum() / (found.sum() + true.sum())
        assert overlap > 0.8, (t, overlap)


def test_without_memory_only_prompted_slices_are_answered() -> None:
    masks = asked(student().eval(), clip(64), square(1), square(0, 2, class_index=2), memory="none")
    assert masks.answered_nt.tolist() == [[False, True, False, False], [True, False, True, False]]
    assert bool((masks.logits_ntyx[0, [0, 2, 3]] == 0).all())
    assert len(masks.entries) == 3


def test_the_bank_of_the_class_changes_remembered_slices_and_no_prompted_one() -> None:
    net = student().eval()
    banks = ClassBanks(BankRules(capacity=4))
    with torch.no_grad():
        for class_index, entry in asked(net, clip(64).flip(3), square(2)).entries:
            banks.offer(class_index, entry)
        alone, helped = (asked(net, clip(64), square(0), draws=4, banks=b) for b in (None, banks))
    assert torch.equal(alone.logits_ntyx[:, 0], helped.logits_ntyx[:, 0])
    assert not torch.equal(alone.logits_ntyx[:, 1:], helped.logits_ntyx[:, 1:])
    assert len(banks.of(1)) == 4


def test_an_object_beside_another_is_segmented_as_alone() -> None:
    net = student().eval()
    load_start_weights(net, Sam2StudentConfig())
    with torch.no_grad():
        alone = asked(net, clip(64), square(1), memory="temporal")
        both = asked(net, clip(64), square(1), square(0, 2, class_index=2), memory="temporal")
    torch.testing.assert_close(alone.logits_ntyx[0], both.logits_ntyx[0], atol=1e-3, rtol=1e-3)


def test_merged_logits_are_the_arg_max_against_a_background_of_zero() -> None:
    planes = torch.tensor([[2.0, -1.0], [3.0, -2.0]])[:, :, None, None].expand(2, 2, 1, 1)
    masks = ClipMasks(
        (1, 3), planes, torch.ones(2, 2), torch.tensor([[1.0, 1.0], [-1.0, 1.0]]),
        torch.ones(2, 2, dtype=torch.bool), (),
    )  # fmt: skip
    every = masks.merged_logits(4, (2, 2), present_only=False)
    assert every.shape == (2, 4, 2, 2)
    assert every.argmax(1)[:, 0, 0].tolist() == [3, 0]
    present = masks.merged_logits(4, (2, 2), present_only=True)
    assert present.argmax(1)[:, 0, 0].tolist() == [1, 0], "class 3 is absent on the first slice"
    assert bool((every[:, 2] == -20).all())
    swapped = replace(masks, class_index=(3, 1))
    assert swapped.merged_logits(4, (2, 2), present_only=False).argmax(1)[0, 0, 0] == 1


def test_an_object_is_far_below_where_it_was_not_asked_for() -> None:
    answered = torch.tensor([[True, False, False], [True, True, False]])
    zero = torch.zeros(2, 3)
    masks = ClipMasks((1, 3), torch.ones(2, 3, 1, 1), zero, zero + 1, answered, ())
    for present_only in (False, True):
        logits = masks.merged_logits(4, (1, 1), present_only=present_only)[..., 0, 0]
        assert logits.tolist() == [[0, 1, -20, 1], [0, -20, -20, 1], [0, -20, -20, -20]]
    assert masks.asked_tk(4).int().tolist() == [[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]]


def test_equal_seeds_give_equal_students_and_official_sizes_need_a_checkpoint() -> None:
    one, two = student().state_dict(), student().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(
        UsageError, match=r"needs a checkpoint\.\n  where: train\.network\.sam2\.weights "
    ):
        load_start_weights(student("tiny"), Sam2StudentConfig(size="tiny"))
    assert start_weights_digest(Sam2StudentConfig(weights="random")) is None
    assert start_weights_digest(Sam2StudentConfig()) is not None
    with pytest.raises(DataError, match="missing"):
        start_weights_digest(Sam2StudentConfig(weights="gone.pt"))


@pytest.mark.slow
def test_a_saved_student_comes_back_and_its_graph_has_one_size(tmp_path) -> None:
    from sssflow.contracts.model import Preprocessing
    from sssflow.export.config import ExportConfig
    from sssflow.export.onnx import export_graph, serialise, tensor_contracts
    from sssflow.export.parity import onnx_runner, parity_sizes
    from sssflow.networks.trained import Provenance, load_model, save_model

    net = student().eval()
    config = NetworkConfig(
        name="sam2", sam2=Sam2StudentConfig(weights="/gone/with/the/training.pt")
    )
    provenance = Provenance(("background", "a", "b"), "0" * 64, "sss_in_loop", 3)
    save_model(tmp_path, net.state_dict(), config, Preprocessing(size_hw=(64, 64)), provenance)
    loaded = load_model(tmp_path)
    image = clip(64, 3)
    with torch.no_grad():
        expected = net(image).numpy()
        assert np.array_equal(loaded.net(image).numpy(), expected)
    assert parity_sizes(loaded, ExportConfig()) == ((64, 64),)
    assert tensor_contracts(loaded)[0][0].shape == ("batch", 1, 64, 64)
    found = onnx_runner(serialise(export_graph(loaded, opset=18)))(image.numpy())
    assert np.abs(found - expected).max() < 1e-4
