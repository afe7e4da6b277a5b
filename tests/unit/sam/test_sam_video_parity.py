"""Our pass through a volume against the package's video predictor: same weights, same prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2 import sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base

from sssflow.sam.build import build_sam2, model_config, set_input_size
from sssflow.sam.geometry import full_window
from sssflow.sam.heads import IMAGE_MEAN, IMAGE_STD
from sssflow.sam.promptable import Floats, Prompt
from sssflow.sam.torch_backend import TorchPromptable

SIDE_PX, SLICES = 64, 20
PROMPTS = {
    6: Prompt((15.0, 15.0, 40.0, 45.0), ((25.0, 30.0),), (1,)),
    11: Prompt((10.0, 15.0, 40.0, 35.0), ((25.0, 30.0),), (1,)),
}
"""More slices beside them than the memory (7) and the pointers (16) reach."""

Logits = dict[int, Floats]


def ours(model: SAM2Base, volume_shw: Floats, *, reverse: bool) -> Logits:
    backend = TorchPromptable(model, model_digest="0" * 64)
    features = backend.encode(volume_shw, full_window((SIDE_PX, SIDE_PX)))
    memory, asked = backend.begin(features, PROMPTS)
    found = {index: answer.logits_yx for index, answer in asked.items()}
    for index in range(10, -1, -1) if reverse else range(7, SLICES):
        if index not in PROMPTS:
            memory, answer = backend.track(features, memory, index, reverse=reverse)
            found[index] = answer.logits_yx
    return found


def the_package_s(
    model: SAM2Base, version: Any, volume_shw: Floats, monkeypatch: Any, *, reverse: bool
) -> Logits:
    kind = {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor"}
    video = instantiate(OmegaConf.merge(model_config("tiny", version=version), kind)).eval()
    set_input_size(video, SIDE_PX)
    video.load_state_dict(model.state_dict())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    frames = (torch.from_numpy(volume_shw)[:, None].expand(-1, 3, -1, -1) - mean) / std
    monkeypatch.setattr(
        sam2_video_predictor, "load_video_frames", lambda **_: (frames, SIDE_PX, SIDE_PX)
    )
    monkeypatch.setattr(sam2_video_predictor, "tqdm", lambda each, **_: each)
    state = video.init_state("frames")
    for index, prompt in PROMPTS.items():
        x0, y0, x1, y1 = prompt.box_xyxy_px or ()
        video.add_new_points_or_box(
            state,
            frame_idx=index,
            obj_id=1,
            points=np.array(prompt.points_xy_px, np.float32),
            labels=np.array(prompt.point_labels, np.int32),
            # Ours names the first and last pixel, theirs the edges.
            box=np.array([x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5], np.float32),
        )
    start = max(PROMPTS) if reverse else min(PROMPTS)
    for _ in video.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
        pass
    outputs: Mapping[str, Any] = state["output_dict_per_obj"][0]
    every = outputs["cond_frame_outputs"] | outputs["non_cond_frame_outputs"]
    return {index: out["pred_masks"][0, 0].numpy() for index, out in every.items()}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_tracking_is_that_of_the_package_s_video_predictor(version, reverse, monkeypatch):
    torch.manual_seed(0)
    model = build_sam2("tiny", version=version, input_size=SIDE_PX)
    score = model.sam_mask_decoder.pred_obj_score_head
    with torch.no_grad():
        getattr(score, "layers", [score])[-1].bias.fill_(5.0)  # the object is there
    volume_shw = np.random.default_rng(0).random((SLICES, SIDE_PX, SIDE_PX), dtype=np.float32)
    expected = the_package_s(model, version, volume_shw, monkeypatch, reverse=reverse)
    found = ours(model, volume_shw, reverse=reverse)
    assert sorted(found) == sorted(expected)
    spread = max(float(np.ptp(logits)) for logits in expected.values())
    for index, logits in expected.items():
        assert np.abs(found[index] - logits).max() < 1e-4 * spread
    # The slices differ by more than the tolerance: the memory is part of what is compared.
    assert np.abs(found[0 if reverse else 19] - found[8]).max() > 1e-2 * spread
