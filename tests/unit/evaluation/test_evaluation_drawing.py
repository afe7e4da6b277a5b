"""Pictures: colours, outlines, chosen slices, equal bytes."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, SlicePrompt
from sssflow.evaluation.drawing import (
    PALETTE,
    class_colour,
    content_slices,
    dashed,
    display_range,
    fit_size,
    grey,
    outline,
)
from sssflow.evaluation.overlays import CaseView, largest_slice, write_case_overlay, write_montage
from sssflow.evaluation.report.sprites import Layer, ViewerInput, build_case

SHAPE = (5, 12, 16)


def labels() -> np.ndarray:
    found = np.zeros(SHAPE, dtype=np.uint8)
    found[1:4, 3:8, 4:10] = 1
    found[2, 4:6, 5:8] = 2
    return found


def view() -> CaseView:
    image = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    return CaseView("case1", "test", image, labels(), {"sss": np.roll(labels(), 1, 2)}, (1.0, 1.0))


def decode(layer: Layer) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(layer.data_uri.partition(",")[2])))


def test_an_outline_is_the_inner_rim_of_each_class() -> None:
    square = np.zeros((5, 5), dtype=np.uint8)
    square[1:4, 1:4] = 3
    expected = square.copy()
    expected[2, 2] = 0
    assert np.array_equal(outline(square), expected)
    assert not outline(np.full((4, 4), 2, dtype=np.uint8)).any()
    assert outline(np.array([[1, 1, 2, 2]], dtype=np.uint8)).tolist() == [[0, 1, 2, 0]]


def test_a_dashed_outline_is_part_of_the_whole_one() -> None:
    rim = outline(np.pad(np.ones((20, 20), dtype=np.uint8), 2))
    gaps = dashed(rim)
    assert 0.4 < np.count_nonzero(gaps) / np.count_nonzero(rim) < 0.9
    assert not gaps[rim == 0].any()


def test_grey_spans_the_stated_range_and_a_flat_volume_is_black() -> None:
    values = np.array([[-5.0, 0.0, 5.0, 10.0, 99.0]])
    assert grey(values, (0.0, 10.0)).tolist() == [[0, 0, 128, 255, 255]]
    assert not grey(values, (3.0, 3.0)).any()
    assert display_range(np.full((2, 2, 2), 7)) == (7.0, 7.0)


def test_pictures_keep_the_proportions_of_the_tissue() -> None:
    assert fit_size((100, 50), (1.0, 1.0), 200) == (200, 100)
    assert fit_size((100, 50), (1.0, 4.0), 200) == (100, 200)
    assert fit_size((1, 1000), (1.0, 1.0), 100) == (1, 100)


def test_slices_with_content_are_chosen_evenly() -> None:
    assert content_slices([labels()], 10) == (1, 2, 3)
    assert content_slices([labels()], 2) == (1, 3)
    assert content_slices([np.zeros(SHAPE, dtype=np.uint8)], 3) == (0, 2, 4)
    assert largest_slice(labels()) == 1
    assert largest_slice(np.zeros(SHAPE, dtype=np.uint8)) == 2


def test_colours_are_distinct_and_repeat_after_the_palette() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == 7
    assert class_colour(1) == class_colour(8) == PALETTE[0]


def test_equal_views_give_equal_png_bytes_that_show_each_class(tmp_path: Path) -> None:
    names = ("background", "RV", "MYO")
    for name in ("a.png", "b.png"):
        write_case_overlay(tmp_path / name, view(), names)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    for index in (1, 2):
        assert (pixels == class_colour(index)).all(axis=1).sum() > 300
    write_montage(tmp_path / "m.png", [view(), view()], names)
    whole, montage = Image.open(tmp_path / "a.png"), Image.open(tmp_path / "m.png")
    assert whole.width == montage.width
    # Three slices with content against two cases of one slice each.
    assert whole.height != montage.height


def test_a_sprite_holds_every_slice_of_every_layer_at_one_size() -> None:
    shown = view()
    prompt = SlicePrompt(
        slice_index=2, box_xyxy_px=(4, 3, 9, 7), points_xy_px=((6, 5),), point_labels=(1,)
    )
    found = ObjectPrompts(
        class_index=2,
        continuity=1.0,
        window_start=0,
        window_length=5,
        accepted=True,
        component_voxels=9,
        slices=(prompt,),
    )
    built = build_case(
        ViewerInput(
            case_id="case1",
            note="",
            image_shw=shown.image_shw,
            truth_shw=shown.truth_shw,
            masks=shown.predictions,
            prompts=CasePrompts(case_id="case1", shape_shw=SHAPE, objects=(found,)),
            spacing_hw=(1.0, 1.0),
        ),
        side_px=64,
        max_slices=32,
    )
    assert [layer.kind for layer in built.layers] == ["image", "truth", "mask", "mask", "prompts"]
    assert {decode(layer).size for layer in built.layers} == {(64, 48 * 5)}
    # Slices 1 to 3 hold equally much; the prompt is on slice 2.
    assert built.start == 2
    drawn = np.asarray(decode(built.layers[-1]).convert("RGBA"))
    rows = np.flatnonzero(drawn[..., 3].any(axis=1))
    # The box goes from the top of row 3 to the bottom of row 7, at 4 screen pixels per pixel.
    assert (rows[0], rows[-1]) == (2 * 48 + 12, 2 * 48 + 32)
    columns = np.flatnonzero(drawn[..., 3].any(axis=0))
    assert (columns[0], columns[-1]) == (16, 40)
    assert tuple(drawn[rows[0], 20, :3]) == class_colour(2)


def test_many_slices_are_thinned_evenly() -> None:
    image = np.zeros((40, 8, 8), dtype=np.float32)
    empty = np.zeros((40, 8, 8), dtype=np.uint8)
    built = build_case(
        ViewerInput("c", "", image, empty, {}, None, (1.0, 1.0)), side_px=64, max_slices=14
    )
    assert built.slices == tuple(range(0, 40, 3))
    assert built.slice_count == 40


def test_a_sprite_is_no_taller_than_a_jpeg_can_be() -> None:
    # The most that the settings allow: 200 slices of 512 pixels would be 102,400 pixels.
    image, empty = np.zeros((200, 8, 8), dtype=np.float32), np.zeros((200, 8, 8), dtype=np.uint8)
    built = build_case(
        ViewerInput("c", "", image, empty, {}, None, (1.0, 1.0)), side_px=512, max_slices=200
    )
    assert (len(built.slices), built.slices[0], built.slices[-1]) == (63, 0, 199)
    assert all(decode(layer).size == (512, 63 * 512) for layer in built.layers)


def test_the_legend_of_an_overlay_names_every_class_and_long_names_stay_in_their_column(
    tmp_path: Path,
) -> None:
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    models = {"a-name-of-a-model-that-is-longer-than-its-column": nothing, "b": nothing}
    shown = replace(view(), truth_shw=nothing, predictions=models)
    names = ("background", *(f"organ with a name {number}" for number in range(13)))
    write_case_overlay(tmp_path / "a.png", shown, names)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    swatches = sum(int((pixels == colour).all(axis=2).sum()) for colour in PALETTE)
    assert swatches == 13 * 13 * 13
    short = replace(shown, predictions={"m": nothing, "b": nothing})
    write_case_overlay(tmp_path / "b.png", short, names)
    other = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
    column = 14 + 3 * (220 + 6)  # the last column begins here, after image, truth, first model
    assert (pixels[:, column:] == other[:, column:]).all()
