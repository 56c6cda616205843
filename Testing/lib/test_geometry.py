"""Frames: answers computed by hand, then SimpleITK's and nibabel's, then round trips."""

from __future__ import annotations

import math

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from GSMedSegLib.geometry import (
    as_ijk_to_ras,
    check_inside,
    flip_grid,
    flip_voxel,
    flipped_axes,
    grid_distance_mm,
    ijk_to_ras_from_lps,
    kji_to_ras,
    lps_from_ijk_to_ras,
    nearest_voxel,
    ras_to_kji,
    spacing_kji_mm,
)

# An axial CT as scanners make it: i to the patient's left, j to posterior, k up.
AXIAL = np.array([[-0.5, 0, 0, 100], [0, -0.5, 0, 120], [0, 0, 3, -40], [0, 0, 0, 1]])


@st.composite
def grids(draw: st.DrawFn) -> NDArray[np.float64]:
    """Any grid: oblique, left-handed or right-handed, from 10 nm to 50 mm a voxel, far from the origin."""
    quaternion = np.array(draw(st.lists(st.floats(-1, 1), min_size=4, max_size=4)))
    if np.linalg.norm(quaternion) < 1e-3:
        quaternion = np.array([1.0, 0, 0, 0])
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    spacing_mm = draw(st.lists(st.floats(1e-5, 50), min_size=3, max_size=3))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * spacing_mm * [draw(st.sampled_from([1, -1])), 1, 1]
    matrix[:3, 3] = draw(st.lists(st.floats(-1000, 1000), min_size=3, max_size=3))
    return matrix


def test_axial_ct_by_hand() -> None:
    """Voxel k = 2, j = 20, i = 10: 5 mm left of 100, 10 mm behind 120, 6 mm above -40."""
    np.testing.assert_allclose(kji_to_ras([[2, 20, 10]], AXIAL), [[95, 110, -34]])
    np.testing.assert_allclose(ras_to_kji([[95, 110, -34]], AXIAL), [[2, 20, 10]])
    assert spacing_kji_mm(AXIAL) == (3, 0.5, 0.5)


def test_lps_differs_from_ras_by_two_signs() -> None:
    """A SimpleITK image at the identity lies at the RAS identity turned by half about the long axis."""
    np.testing.assert_array_equal(
        ijk_to_ras_from_lps((1, 2, 3), (4, 5, 6), (1, 0, 0, 0, 1, 0, 0, 0, 1)),
        [[-4, 0, 0, -1], [0, -5, 0, -2], [0, 0, 6, 3], [0, 0, 0, 1]],
    )


def test_no_points_give_no_points() -> None:
    assert kji_to_ras(np.empty((0, 3)), AXIAL).shape == (0, 3)
    assert ras_to_kji(np.empty((0, 3)), AXIAL).shape == (0, 3)


@given(grids())
def test_lps_round_trip(ijk_to_ras: NDArray[np.float64]) -> None:
    again = ijk_to_ras_from_lps(*lps_from_ijk_to_ras(ijk_to_ras))
    np.testing.assert_allclose(again, ijk_to_ras, rtol=1e-12, atol=1e-15)


@given(grids(), st.lists(st.floats(-600, 600), min_size=3, max_size=3))
def test_points_round_trip_below_a_thousandth_of_a_voxel(
    ijk_to_ras: NDArray[np.float64], kji: list[float]
) -> None:
    np.testing.assert_allclose(ras_to_kji(kji_to_ras([kji], ijk_to_ras), ijk_to_ras), [kji], atol=1e-3)


@given(grids(), st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400)))
def test_same_place_as_simpleitk_and_nibabel(
    ijk_to_ras: NDArray[np.float64], kji: tuple[int, int, int]
) -> None:
    image = sitk.Image(2, 2, 2, sitk.sitkUInt8)
    origin, spacing, direction = lps_from_ijk_to_ras(ijk_to_ras)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    left, posterior, superior = image.TransformContinuousIndexToPhysicalPoint([float(x) for x in kji[::-1]])
    ours = kji_to_ras([kji], ijk_to_ras)[0]
    np.testing.assert_allclose(ours, [-left, -posterior, superior], atol=1e-6)
    np.testing.assert_allclose(ours, nibabel.affines.apply_affine(ijk_to_ras, kji[::-1]), atol=1e-6)


def test_half_a_voxel_always_goes_up() -> None:
    """np.rint would give 0, 2, 2, -0: neighbouring clicks would fall into one voxel and skip another."""
    np.testing.assert_array_equal(nearest_voxel([0.5, 1.5, 2.5]), [1, 2, 3])
    np.testing.assert_array_equal(nearest_voxel([-0.5, -0.51, 0.49]), [0, -1, 0])
    assert nearest_voxel([[1.2, 3.7, 5.0]]).dtype == np.int64


@given(grids(), st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400)))
def test_a_voxel_centre_finds_its_voxel(ijk_to_ras: NDArray[np.float64], kji: tuple[int, int, int]) -> None:
    centre_ras = kji_to_ras([kji], ijk_to_ras)
    np.testing.assert_array_equal(nearest_voxel(ras_to_kji(centre_ras, ijk_to_ras)), [kji])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nearest_voxel_of_nothing(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        nearest_voxel([0.0, value, 0.0])


def test_check_inside_names_the_voxel_and_the_range() -> None:
    check_inside([[0, 0, 0], [4, 5, 6]], (5, 6, 7))
    check_inside([], (5, 6, 7))
    with pytest.raises(ValueError, match=r"\(5, 0, 0\) is outside .* k 0\.\.4, j 0\.\.5, i 0\.\.6"):
        check_inside([[0, 0, 0], [5, 0, 0]], (5, 6, 7))
    with pytest.raises(ValueError, match="outside"):
        check_inside([0, -1, 0], (5, 6, 7))
    with pytest.raises(ValueError, match="outside"):
        check_inside([0, 0, 10**30], (5, 6, 7))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), "4x4 matrix, got shape"),
        ("left", "4x4 matrix of numbers"),
        (np.full((4, 4), math.nan), "NaN"),
        (AXIAL.T, "transposed"),
        (np.diag([1.0, 1, 0, 1]), "do not span space"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "do not span space"),
    ],
)
def test_bad_matrices_are_refused(matrix: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_ijk_to_ras(matrix)  # type: ignore[arg-type]


def test_tiny_voxels_are_no_singular_matrix() -> None:
    """Cryo-electron tomography: a tenth of a nanometre is 1e-7 mm."""
    np.testing.assert_allclose(ras_to_kji([[3e-7, 2e-7, 1e-7]], np.diag([1e-7, 1e-7, 1e-7, 1])), [[1, 2, 3]])


def test_2d_lps_is_refused() -> None:
    with pytest.raises(ValueError, match="3D grid"):
        ijk_to_ras_from_lps((0, 0), (1, 1), (1, 0, 0, 1))


def test_points_need_three_columns() -> None:
    with pytest.raises(ValueError, match=r"\[\[a, b, c\]\]"):
        kji_to_ras([1, 2, 3], AXIAL)


def test_grid_distance_is_that_of_the_worst_corner() -> None:
    """Slices 3.1 mm apart instead of 3 mm: 0.9 mm off after nine."""
    stretched = AXIAL.copy()
    stretched[2, 2] = 3.1
    assert grid_distance_mm(AXIAL, stretched, (10, 20, 30)) == pytest.approx(0.9)
    assert grid_distance_mm(AXIAL, AXIAL, (10, 20, 30)) == 0


def test_a_flipped_grid_by_hand() -> None:
    """Ten slices 3 mm apart, from the other end: the last one, at -40 + 27 mm, is the first."""
    flipped = flip_grid(AXIAL, (10, 20, 30), (0,))
    np.testing.assert_array_equal(
        flipped, [[-0.5, 0, 0, 100], [0, -0.5, 0, 120], [0, 0, -3, -13], [0, 0, 0, 1]]
    )
    assert flip_voxel((9, 2, 3), (10, 20, 30), (0,)) == (0, 2, 3)
    assert flipped_axes(AXIAL, flipped) == (0,)
    assert flipped_axes(AXIAL, AXIAL) == ()


@given(grids(), st.sets(st.sampled_from([0, 1, 2])), st.tuples(*[st.integers(0, n - 1) for n in (4, 5, 6)]))
def test_flipping_moves_no_voxel(
    ijk_to_ras: NDArray[np.float64], axes: set[int], kji: tuple[int, int, int]
) -> None:
    """Its value is found at its new index, and its place is the same; flipping twice changes nothing."""
    shape, along = (4, 5, 6), sorted(axes)
    flipped, moved = flip_grid(ijk_to_ras, shape, along), flip_voxel(kji, shape, along)
    np.testing.assert_allclose(kji_to_ras([moved], flipped), kji_to_ras([kji], ijk_to_ras), atol=1e-9)
    values = np.arange(120).reshape(shape)
    assert np.flip(values, along)[moved] == values[kji]
    assert flipped_axes(flipped, ijk_to_ras) == tuple(along)
    assert flip_voxel(moved, shape, along) == kji
