"""CutMix takes the partner from the process's own part of the batch; a part of one has none."""

from __future__ import annotations

import pytest

from sssflow.networks.registry import build_network
from sssflow.training import stage
from sssflow.training.distributed import ALONE, World
from sssflow.training.methods.registry import build_method
from sssflow.training.requirements import partner_warnings

OFF = {"augmentation": {"cutmix": {"probability": 0}}}
PASTE = {"augmentation": {"cutmix": {"probability": 0}, "class_paste_probability": 0.5}}
CLIPS = {"sss_in_loop": {"clips_unlabelled": 2}}


@pytest.mark.parametrize(
    ("changes", "processes", "told"),
    [
        ({"method": "unimatch_v2", "batch_unlabelled": 2}, 2, True),
        ({"method": "unimatch_v2", "batch_unlabelled": 2}, 1, False),
        ({"method": "unimatch_v2", "batch_unlabelled": 1}, 1, True),
        ({"method": "unimatch_v2", "batch_unlabelled": 1, **OFF}, 1, False),
        ({"method": "unimatch_v2", "batch_unlabelled": 1, **PASTE}, 1, True),
        ({"method": "mean_teacher", "batch_unlabelled": 1}, 1, False),
        ({"method": "sss_in_loop", "batch_unlabelled": 1, **CLIPS}, 1, False),
        ({"method": "sss_in_loop", "batch_unlabelled": 8, **CLIPS}, 2, True),
    ],
)
def test_a_lone_sample_is_told_where_it_would_be_pasted_into_itself(
    changes, processes, told, tiny_config
):
    config = tiny_config(**changes)
    world = ALONE if processes == 1 else World(rank=0, size=processes)
    method = build_method(build_network(config.network, 3, seed=1), config)
    assert bool(partner_warnings(method, config, world)) is told


def test_the_warning_stays_with_run_and_model(tiny, tiny_config, tmp_path):
    config = tiny_config(method="fixmatch", batch_unlabelled=1, steps=1)
    (note,) = stage.run(config, tiny.dataset, tmp_path).notes
    assert "(batch_unlabelled 1, processes 1)" in note
