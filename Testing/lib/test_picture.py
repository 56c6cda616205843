"""Slices with outlines and clicks: pixels that can be told by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from GSMedSegLib.picture import CAPTION_PIXELS, COLORS, GAP_PIXELS, WIDEST, draw, stacked
from GSMedSegLib.prompts import Click

MM = (1.0, 1.0, 1.0)
GREY, WHITE, BLACK = (127, 127, 127), (255, 255, 255), (0, 0, 0)


def grey_image(*shape: int) -> NDArray[np.uint8]:
    """Grey all over, but for a dark and a bright row of voxels in the first corner."""
    image = np.full(shape, 127, np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    return image


def square(*shape: int) -> NDArray[np.uint8]:
    """A block of voxels 4 to 7 along each axis."""
    labels = np.zeros(shape, np.uint8)
    labels[4:8, 4:8, 4:8] = 1
    return labels


def axial(picture: Image.Image, height: int) -> NDArray[Any]:
    """The first slice's pixels, without the caption."""
    return np.asarray(picture)[CAPTION_PIXELS : CAPTION_PIXELS + height, :height]


def test_a_mask_is_outlined_inside_its_border() -> None:
    """12 voxels in 120 pixels: the block is at pixels 40 to 79, and its line is two pixels wide."""
    labels = square(12, 12, 12)
    pixels = axial(draw(grey_image(12, 12, 12), labels, ["a"], [[]], MM, 120), 120)
    row = [tuple(int(value) for value in pixel) for pixel in pixels[60, 38:44]]
    assert row == [GREY, GREY, COLORS[0], COLORS[0], GREY, GREY]


def test_the_truth_is_dashed_and_lies_under_the_mask() -> None:
    truth, missing = square(12, 12, 12), np.zeros((12, 12, 12), np.uint8)
    image = grey_image(12, 12, 12)
    missed = axial(draw(image, missing, ["a"], [[]], MM, 120, truth=truth, cuts_kji=[(5, 5, 5)]), 120)
    edge = {tuple(int(value) for value in pixel) for pixel in missed[40:80, 40]}
    assert edge == {BLACK, WHITE}
    agreed = draw(image, truth, ["a"], [[]], MM, 120, truth=truth)
    assert agreed.tobytes() == draw(image, truth, ["a"], [[]], MM, 120).tobytes()


def test_k_grows_upward_in_outlines_and_clicks_alike() -> None:
    """A block and a click at low k are in the lower half of the coronal and sagittal slices."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:4, 4:8, 4:8] = 1
    picture = draw(grey_image(12, 12, 12), labels, ["a"], [[Click((2, 5, 5), positive=True)]], MM, 120)
    coronal = np.asarray(picture)[CAPTION_PIXELS : CAPTION_PIXELS + 120, 120 + GAP_PIXELS :]
    rows = np.flatnonzero((coronal == COLORS[0]).all(axis=2).any(axis=1))
    assert (rows.min(), rows.max()) == (80, 109)


def test_the_cut_is_where_one_wants_it() -> None:
    labels = square(12, 12, 12)
    image = grey_image(12, 12, 12)
    by_default, elsewhere = (
        axial(draw(image, labels, ["a"], [[]], MM, 120, cuts_kji=cuts), 120) for cuts in (None, [(9, 5, 5)])
    )
    assert (by_default == COLORS[0]).all(axis=2).any()
    assert not (elsewhere == COLORS[0]).all(axis=2).any()


def test_the_side_view_of_a_few_wide_slices_is_a_strip() -> None:
    """4 slices of 40 × 40 voxels: 10 times as wide as high, cut down to what fits in."""
    picture = draw(grey_image(4, 40, 40), np.zeros((4, 40, 40), np.uint8), ["a"], [[]], MM, 100)
    assert picture.size == (100 + 2 * round(WIDEST * 100) + 2 * GAP_PIXELS, 100 + CAPTION_PIXELS + GAP_PIXELS)
    pixels = np.asarray(picture)[CAPTION_PIXELS:, 100 + GAP_PIXELS + 20]
    assert np.flatnonzero((pixels == GREY).all(axis=1)).max() < round(WIDEST * 100) / 10


def test_an_object_has_clicks_and_a_cut() -> None:
    image, labels = grey_image(12, 12, 12), square(12, 12, 12)
    with pytest.raises(ValueError, match="one list of clicks per object; got 1 names and 2 lists"):
        draw(image, labels, ["a"], [[], []], MM)
    with pytest.raises(ValueError, match="one list of clicks per object; got 0 names"):
        draw(image, labels, [], [], MM)
    with pytest.raises(ValueError, match="one cut per object; got 1 names and 2 cuts"):
        draw(image, labels, ["a"], [[]], MM, cuts_kji=[(0, 0, 0), (1, 1, 1)])


def test_pictures_are_stacked_on_black() -> None:
    sheet = stacked([Image.new("RGB", (4, 2), "white"), Image.new("RGB", (6, 3), "red")])
    assert sheet.size == (6, 5)
    assert sheet.getpixel((5, 0)) == BLACK
    assert sheet.getpixel((5, 4)) == (255, 0, 0)
