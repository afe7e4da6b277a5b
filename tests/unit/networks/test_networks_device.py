"""Which device a setting means, on machines with and without GPUs."""

from __future__ import annotations

import pytest
import torch

from sssflow.errors import UsageError
from sssflow.networks.device import choose_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine with as many GPUs as the parameter says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
    ],
    indirect=["gpus"],
)
def test_auto_is_the_gpu_where_there_is_one(gpus: None, name: str, device: str) -> None:
    assert choose_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "name", "said"),
    [
        (0, "cuda", "0 CUDA device"),
        (2, "cuda:2", "more than 2 CUDA device"),
        (2, "gpu", "no such device"),
        (2, "meta", "no such device"),
    ],
    indirect=["gpus"],
)
def test_a_device_that_is_not_here_is_refused_by_its_key(gpus: None, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        choose_device(name, where="sam.device")
    assert "sam.device" in caught.value.describe()
