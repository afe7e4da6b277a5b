"""Building SAM-2 of every size, and loading weights files that fit and that do not."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sssflow.errors import DataError, UsageError
from sssflow.sam.build import build_sam2, parameter_count, set_input_size
from sssflow.sam.heads import decode, image_features, without_memory
from sssflow.sam.weights_io import (
    guess_size,
    load_weights,
    packaged_weights,
    read_state,
    save_weights,
    weights_path,
)

OFFICIAL = [
    ("tiny", 38.96),
    ("small", 46.06),
    pytest.param("base_plus", 80.85, marks=pytest.mark.slow),
    pytest.param("large", 224.45, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("size", "millions"), OFFICIAL)
def test_each_official_size_has_its_known_number_of_parameters(size, millions):
    model = build_sam2(size, input_size=128)
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.01)
    assert guess_size(model.state_dict()) == size


def test_versions_2_0_and_2_1_differ_in_their_memory_weights():
    old, new = (set(build_sam2("tiny", version=v).state_dict()) for v in ("2.0", "2.1"))
    assert new - old == {
        "no_obj_embed_spatial",
        "obj_ptr_tpos_proj.weight",
        "obj_ptr_tpos_proj.bias",
    }


def test_nano_is_small_and_exists_as_2_1_only():
    assert parameter_count(build_sam2("nano", input_size=64)) < 4_300_000
    with pytest.raises(UsageError, match=r"2\.1 only"):
        build_sam2("nano", version="2.0")


@pytest.mark.parametrize("input_size", [64, 128, 160, 192])
def test_any_multiple_of_32_gives_masks_of_a_quarter_of_the_input(input_size):
    model = build_sam2("nano", input_size=128)
    set_input_size(model, input_size)
    with torch.inference_mode():
        features = image_features(model, torch.rand(2, 1, input_size, input_size))
        points = torch.rand(2, 3, 2) * input_size, torch.tensor([[2, 3, 1]] * 2)
        out = decode(model, without_memory(model, features), features, points)
    side = input_size // 4
    assert out.logits_n4yx.shape == (2, 4, side, side)
    assert features.fine_bcyx.shape[-1] == side
    assert features.coarse_bcyx.shape[-1] == input_size // 16


@pytest.mark.parametrize("input_size", [0, 16, 100, -32])
def test_other_input_sizes_are_refused(input_size):
    with pytest.raises(UsageError, match="multiple of 32"):
        build_sam2("nano", input_size=input_size)


def test_a_checkpoint_in_the_official_form_gives_its_weights(tmp_path: Path):
    state = build_sam2("nano", input_size=64).state_dict()
    path = tmp_path / "nano.pt"
    torch.save({"model": state}, path)
    model = build_sam2("nano", input_size=64)
    load_weights(model, path)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_half_precision_safetensors_come_back_rounded_once(tmp_path: Path):
    state = build_sam2("nano", input_size=64).state_dict()
    save_weights(tmp_path / "w.safetensors", state, {"step": 1})
    model = build_sam2("nano", input_size=64)
    load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(t, state[n].half().float()) for n, t in model.state_dict().items())
    assert '"step": 1' in (tmp_path / "w.json").read_text()


def test_a_wrong_shape_is_named_and_the_size_of_the_file_is_guessed(tmp_path: Path):
    torch.save({"model": build_sam2("tiny", input_size=64).state_dict()}, tmp_path / "t.pt")
    with pytest.raises(DataError) as caught:
        load_weights(build_sam2("nano", input_size=64), tmp_path / "t.pt")
    assert "looks like SAM-2 tiny" in caught.value.found
    assert "is (1, 96, 7, 7), not (1, 32, 7, 7)" in caught.value.found
    assert " more" in caught.value.found


def test_missing_keys_are_named_and_nothing_is_loaded(tmp_path: Path):
    model = build_sam2("nano", input_size=64)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = {name: t + 1 for name, t in before.items() if name != "no_mem_embed"}
    save_file(state, str(tmp_path / "w.safetensors"))
    with pytest.raises(DataError, match="missing no_mem_embed"):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class _Payload:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def test_a_checkpoint_that_holds_code_is_refused_without_running_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Payload()}, tmp_path / "bad.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(_Payload()))
    for name in ("bad.pt", "bare.pt"):
        with pytest.raises(DataError, match="more than tensors") as caught:
            read_state(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<!DOCTYPE html><html>Login</html>", "begins with '<!DOCTYPE html>"),
        (b'{"message": "Not Found"}', 'begins with \'{"message": "Not Found"}\''),
        (b"", "an empty file"),
        (b"\x80", "index out of range"),
        (b"\x80\x02J\x01", "requires a buffer"),
    ],
)
def test_a_page_saved_as_a_checkpoint_is_unreadable_and_not_suspected(
    tmp_path: Path, content: bytes, found: str
):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_state(tmp_path / "x.pt")
    assert found in caught.value.found
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(DataError, match=r"cut\."):
        read_state(tmp_path / name)


def test_a_missing_file_and_an_official_size_without_a_file_are_told_apart(tmp_path: Path):
    with pytest.raises(DataError, match="missing"):
        read_state(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="needs a checkpoint"):
        weights_path("large", None)
    with pytest.raises(UsageError, match=r"where: --weights\n(.*\n)+.*as --weights\."):
        weights_path("large", None, where="--weights")


def test_the_packaged_weights_are_small_and_fit_nano():
    path = packaged_weights()
    assert path.stat().st_size <= 10_000_000
    load_weights(build_sam2("nano", input_size=64), path)
