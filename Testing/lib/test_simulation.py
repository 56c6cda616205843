"""Clicks that can be worked out by hand, then agreement with a plain reading of the challenge's rules."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from GSMedSegLib import simulation
from GSMedSegLib.prompts import Click
from GSMedSegLib.simulation import next_click


def empty(shape=(12, 12, 12)):
    return np.zeros(shape, bool)


def plain_next_click(truth, mask, max_voxels=math.inf):
    """The rules one by one, slowly: flood fill, then SciPy's distances in the padded box."""
    error = truth != mask
    left, component = {tuple(int(x) for x in v) for v in np.argwhere(error)}, []
    for first in map(tuple, np.argwhere(error).tolist()):
        if first not in left:
            continue
        left.remove(first)
        found = [first]
        for k, j, i in found:
            around = {(k + a, j + b, i + c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)}
            found.extend(sorted(around & left))
            left -= around
        if len(found) > len(component):
            component = found
    if not component:
        return None

    low = np.min(component, axis=0)
    size = np.max(component, axis=0) + 1 - low
    padding = np.maximum((size * 0.25).astype(int), 1)
    box = empty(size + 2 * padding)
    for voxel in component:
        box[tuple(voxel - low + padding)] = True
    if box.size > max_voxels:
        even = np.pad(box, [(0, n % 2) for n in box.shape])
        halved = np.max([even[a::2, b::2, c::2] for a in (0, 1) for b in (0, 1) for c in (0, 1)], axis=0)
        distance = np.kron(ndimage.distance_transform_edt(halved), np.ones((2, 2, 2)))
    else:
        distance = ndimage.distance_transform_edt(box)

    depth = np.zeros(truth.shape)
    for voxel in component:
        depth[voxel] = distance[tuple(voxel - low + padding)]
    np.random.seed(42)
    deepest = np.argwhere(depth == depth.max())
    click = tuple(deepest[np.random.choice(len(deepest))])
    return Click(click, bool(truth[click]))


def random_pair(seed, shape, share):
    rng = np.random.default_rng(seed)
    return rng.random((2, *shape)) < share


def test_no_click_where_nothing_is_wrong():
    truth = empty()
    truth[3:6, 3:6, 3:6] = True
    assert next_click(truth, truth.copy()) is None
    assert next_click(empty(), empty()) is None


def test_a_missed_cube_is_clicked_at_its_centre():
    truth = empty()
    truth[2:9, 3:10, 1:8] = True
    assert next_click(truth, empty()) == Click((5, 6, 4), positive=True)


def test_a_cube_too_many_is_clicked_at_its_centre():
    mask = empty()
    mask[2:9, 3:10, 1:8] = True
    assert next_click(empty(), mask) == Click((5, 6, 4), positive=False)


def test_the_largest_error_is_clicked_whatever_its_kind():
    truth, mask = empty(), empty()
    truth[1:4, 1:4, 1:4] = True  # 27 voxels missed
    mask[6:11, 6:11, 6:11] = True  # 125 voxels too many
    assert next_click(truth, mask) == Click((8, 8, 8), positive=False)
    truth[6:11, 6:11, 6:11] = True
    assert next_click(truth, mask) == Click((2, 2, 2), positive=True)


def test_size_counts_not_depth():
    """A plate of 100 voxels wins over a cube of 64, however deep the cube is."""
    truth = empty()
    truth[0, 0:10, 0:10] = True
    truth[5:9, 5:9, 5:9] = True
    assert next_click(truth, empty()).kji[0] == 0


def test_errors_that_touch_at_a_corner_are_one():
    """Two cubes of 8, joined by a corner, are larger than one of 12."""
    truth = empty()
    truth[0:2, 0:2, 0:2] = truth[2:4, 2:4, 2:4] = True
    truth[6:8, 6:8, 6:9] = True
    assert max(next_click(truth, empty()).kji) < 4


def test_errors_of_both_kinds_that_touch_are_one():
    """The error has no sign; the click's sign is that of the voxel it falls on."""
    truth, mask = empty((5, 5, 11)), empty((5, 5, 11))
    truth[1:4, 1:4, 1:5] = True
    mask[1:4, 1:4, 5:10] = True
    click = next_click(truth, mask)
    assert click.kji[:2] == (2, 2)
    assert click.positive == (click.kji[2] < 5)


def test_of_equal_errors_the_first_in_array_order_is_clicked():
    truth = empty()
    truth[6:9, 1:4, 1:4] = True
    truth[1:4, 6:9, 6:9] = True
    assert next_click(truth, empty()).kji == (2, 7, 7)
    assert next_click(np.asfortranarray(truth), np.asfortranarray(empty())).kji == (2, 7, 7)


def test_the_border_of_the_volume_counts_as_outside():
    truth = np.ones((5, 7, 9), bool)
    assert next_click(truth, ~truth).kji[0] == 2
    assert next_click(truth, ~truth).kji[1] == 3


def test_spacing_does_not_count():
    """There is no spacing to give: a bar is clicked on its axis, where it is widest in voxels."""
    truth = empty((3, 3, 30))
    truth[:, :, 2:10] = True
    click = next_click(truth, empty((3, 3, 30)))
    assert click.kji[:2] == (1, 1)
    assert 3 <= click.kji[2] <= 8


def test_a_draw_is_that_of_seed_42_every_time():
    """A line of ten voxels is one voxel deep all along; RandomState(42).choice(10) is 6, again and again."""
    truth = empty()
    truth[4, 4, 1:11] = True
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    assert [next_click(truth, empty()).kji for _ in range(3)] == [(4, 4, 7)] * 3
    assert (np.random.get_state()[1] == before).all(), "the global random state is the user's"


def test_one_voxel():
    truth = empty((1, 1, 1))
    truth[:] = True
    assert next_click(truth, ~truth) == Click((0, 0, 0), positive=True)


def test_bad_masks():
    with pytest.raises(ValueError, match="same shape"):
        next_click(empty((2, 2, 2)), empty((2, 2, 3)))
    with pytest.raises(ValueError, match="must be bool"):
        next_click(empty().astype(np.uint8), empty())
    with pytest.raises(ValueError, match="3D masks"):
        next_click(empty((4, 4)), empty((4, 4)))


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    share=st.sampled_from([0.03, 0.1, 0.3, 0.6]),
)
def test_equals_the_plain_reading(seed, shape, share):
    truth, mask = random_pair(seed, shape, share)
    assert next_click(truth, mask) == plain_next_click(truth, mask)


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    share=st.sampled_from([0.2, 0.5]),
    max_voxels=st.sampled_from([30, 300, 3000]),
)
def test_equals_the_plain_reading_at_half_resolution(seed, shape, share, max_voxels):
    """The limit of 60 million voxels, lowered to where a test can reach it."""
    truth, mask = random_pair(seed, shape, share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "MAX_DISTANCE_VOXELS", max_voxels)
        assert next_click(truth, mask) == plain_next_click(truth, mask, max_voxels)


def test_equals_the_plain_reading_on_organs(data_dir: Path):
    """Real shapes: missed as a whole, then cut in half, then off by two voxels."""
    labels = sitk.GetArrayFromImage(
        sitk.ReadImage(str(next(data_dir.glob("dev/totalseg_ct/*/label.nii.gz"))))
    )
    sizes = np.bincount(labels.ravel().astype(int))
    for label in [n for n in np.argsort(-sizes) if n and 100 < sizes[n] < 20_000][:3]:
        truth = labels == label
        half = truth.copy()
        half[: np.argwhere(truth)[:, 0].min() + 3] = False
        for mask in (np.zeros_like(truth), half, np.roll(truth, 2, axis=2)):
            assert next_click(truth, mask) == plain_next_click(truth, mask)
