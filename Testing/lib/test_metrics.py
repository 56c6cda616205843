"""Scores that can be worked out by hand, then agreement with DeepMind's own package."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from GSMedSegLib import metrics
from GSMedSegLib.metrics import auc, dice, surface_dice

ISOTROPIC = (1.0, 1.0, 1.0)


def masks(*voxel_lists, shape=(8, 8, 8)):
    """One bool mask per list of (k, j, i)."""
    made = []
    for voxels in voxel_lists:
        mask = np.zeros(shape, bool)
        for voxel in voxels:
            mask[voxel] = True
        made.append(mask)
    return made


def official_surface_dice(truth, mask, spacing_mm, tolerance_mm):
    surface_distance = pytest.importorskip(
        "surface_distance", reason="the dev extra installs surface-distance"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses names that SciPy has moved
        distances = surface_distance.compute_surface_distances(truth, mask, spacing_mm)
        return surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)


def test_dice_of_two_pairs_that_share_one_voxel():
    truth, mask = masks([(1, 1, 1), (1, 1, 2)], [(1, 1, 2), (1, 1, 3)])
    assert dice(truth, mask) == 0.5


def test_dice_of_one_voxel_inside_three():
    truth, mask = masks([(1, 1, 1)], [(1, 1, 1), (1, 1, 2), (1, 1, 3)])
    assert dice(truth, mask) == 2 * 1 / (1 + 3)


@pytest.mark.parametrize("score", [dice, lambda a, b: surface_dice(a, b, ISOTROPIC)])
def test_empty_masks(score):
    """Nothing against something is 0; nothing against nothing says nothing."""
    empty, one = masks([], [(2, 2, 2)])
    assert score(empty, one) == score(one, empty) == 0
    assert math.isnan(score(empty, empty))
    assert score(one, one) == 1


@pytest.mark.parametrize("score", [dice, lambda a, b: surface_dice(a, b, ISOTROPIC)])
def test_bad_masks(score):
    with pytest.raises(ValueError, match=r"same shape, got \(2, 2, 2\) and \(2, 2, 3\)"):
        score(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool))
    with pytest.raises(ValueError, match="must be bool, got uint8 and bool"):
        score(np.ones((2, 2, 2), np.uint8), np.ones((2, 2, 2), bool))


def test_bad_spacing_tolerance_and_dimensions():
    one = np.ones((2, 2, 2), bool)
    for spacing_mm in [(1, 1), (1, 1, 0), (1, 1, math.nan)]:
        with pytest.raises(ValueError, match="three positive millimetres"):
            surface_dice(one, one, spacing_mm)
    with pytest.raises(ValueError, match="0 mm or more"):
        surface_dice(one, one, ISOTROPIC, tolerance_mm=-1)
    with pytest.raises(ValueError, match="3D masks"):
        surface_dice(one[0], one[0], ISOTROPIC)


def test_one_voxel_two_voxels_away():
    """Their near faces are 1 mm apart, and each far face is 2 mm from the near face of the other."""
    truth, mask = masks([(2, 2, 2)], [(2, 2, 4)])
    assert surface_dice(truth, mask, ISOTROPIC, tolerance_mm=0.99) == 0
    assert surface_dice(truth, mask, ISOTROPIC, tolerance_mm=1) == pytest.approx(0.5)
    assert surface_dice(truth, mask, ISOTROPIC, tolerance_mm=1.99) == pytest.approx(0.5)
    assert surface_dice(truth, mask, ISOTROPIC, tolerance_mm=2) == 1


def test_a_tolerance_is_in_mm_along_each_axis():
    """Shifted by one voxel along k, all points of one plane of the surface are off by that axis' spacing."""
    cube = np.zeros((9, 9, 9), bool)
    cube[2:6, 2:6, 2:6] = True
    shifted = np.roll(cube, 1, axis=0)
    assert surface_dice(cube, shifted, (3.0, 1.0, 1.0), tolerance_mm=3.0) == 1
    assert surface_dice(cube, shifted, (3.0, 1.0, 1.0), tolerance_mm=2.9) < 1


def test_points_weigh_as_much_as_their_area():
    """A 20³ cube and the same cube with a slab of one voxel's height on its top: the top is off by 1 mm.

    Of the two surfaces, the top faces (19 × 19 points well inside) and their rims are the only points with no
    point of the other surface at 0 mm. The part within 0 mm must so be near the area that is not top.
    """
    low = np.zeros((24, 24, 24), bool)
    low[1:21, 1:21, 1:21] = True
    high = low.copy()
    high[21, 1:21, 1:21] = True
    tops, all_faces = 20 * 20, 6 * 20 * 20
    expected = 1 - (tops + tops + 4 * 20) / (2 * all_faces + 4 * 20)
    assert surface_dice(low, high, ISOTROPIC, tolerance_mm=0) == pytest.approx(expected, abs=0.02)


def test_the_border_of_the_volume_is_a_surface():
    full = np.ones((4, 4, 4), bool)
    padded = np.pad(full, 3)
    assert surface_dice(full, full, ISOTROPIC) == 1
    assert surface_dice(padded, padded, ISOTROPIC) == 1


def test_every_arrangement_of_eight_voxels_has_deepminds_area():
    """All 256 codes: the distance-free part of the two measures is one."""
    lookup_tables = pytest.importorskip("surface_distance.lookup_tables")
    spacing_mm = (0.7, 1.3, 4.1)
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    ours = metrics._area_by_code(np.array(spacing_mm))
    for code in range(256):
        inside = [corner for bit, corner in enumerate(metrics._CORNERS) if code >> bit & 1]
        assert ours[code] == pytest.approx(theirs[sum(int(kernel[c]) for c in inside)], abs=1e-12)


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([0.4, 0.5, 0.9765625, 1.0, 2.5, 5.0])] * 3),
    tolerance_mm=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    smooth=st.booleans(),
)
def test_equals_deepminds_surface_dice(seed, shape, spacing_mm, tolerance_mm, smooth):
    """Noise (every arrangement of voxels) and blobs (what masks look like)."""
    noise = np.random.default_rng(seed).random((2, *shape))
    truth, mask = (ndimage.gaussian_filter(n, 1.5) < np.median(n) if smooth else n < 0.4 for n in noise)
    truth.flat[0] = mask.flat[-1] = True
    expected = official_surface_dice(truth, mask, spacing_mm, tolerance_mm)
    assert surface_dice(truth, mask, spacing_mm, tolerance_mm) == pytest.approx(expected, abs=1e-9)


def test_equals_deepminds_surface_dice_on_an_organ(data_dir: Path):
    image = sitk.ReadImage(str(next(data_dir.glob("dev/totalseg_ct/*/label.nii.gz"))))
    labels = sitk.GetArrayFromImage(image)
    truth = labels == np.bincount(labels.ravel().astype(int))[1:].argmax() + 1
    mask = np.roll(ndimage.binary_erosion(truth), 2, axis=1)
    for tolerance_mm in (1.0, 2.0, 4.0):
        spacing_mm = image.GetSpacing()[::-1]
        expected = official_surface_dice(truth, mask, spacing_mm, tolerance_mm)
        assert expected > 0.1
        assert surface_dice(truth, mask, spacing_mm, tolerance_mm) == pytest.approx(expected, abs=1e-12)


def test_auc_of_five_rounds():
    assert auc([1, 1, 1, 1, 1]) == 4
    assert auc([0.0, 0.5, 0.5, 1.0, 1.0]) == pytest.approx(0.25 + 0.5 + 0.75 + 1)
    assert auc([0.5, 1.0]) == 0.75
    with pytest.raises(ValueError, match="two values or more, got 1"):
        auc([0.5])
