"""Percentile scaling: by hand, then NumPy's and MONAI's numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from GSMedSegLib.intensity import percentile_limits, scale, to_grey

COUNTED_TYPES = [np.uint8, np.int8, np.uint16, np.int16]


def test_101_values_have_their_percentiles_in_them() -> None:
    """Of 0..100 the 1st percentile is 1, the 99th 99; 50 lies in the middle."""
    image = np.arange(101, dtype=np.uint8)
    limits = percentile_limits(image)
    assert limits == (1, 99)
    np.testing.assert_array_equal(scale(image, limits)[[0, 1, 50, 99, 100]], np.float32([0, 0, 0.5, 1, 1]))


def test_between_two_voxels_the_percentile_is_interpolated() -> None:
    assert percentile_limits(np.array([10, 20], dtype=np.int16), 25, 50) == (12.5, 15)


@pytest.mark.parametrize("dtype", COUNTED_TYPES)
@given(data=st.data())
def test_counting_gives_what_sorting_gives(dtype: type[np.integer[Any]], data: st.DataObject) -> None:
    image = data.draw(npst.arrays(dtype, st.integers(2, 300)))
    if image.min() == image.max():
        return
    expected = tuple(np.percentile(image.astype(np.float64), [1, 99]))
    if expected[0] == expected[1]:
        expected = (image.min(), image.max())
    assert percentile_limits(image) == expected


@pytest.mark.parametrize("dtype", [*COUNTED_TYPES, np.int32, np.float32, np.float64])
def test_large_volumes_in_any_memory_order(dtype: type[np.generic], rng: np.random.Generator) -> None:
    """More voxels than are counted at a time; a transposed and a stepped view count the same voxels."""
    image = (rng.normal(50, 20, (150, 110, 80)).clip(0, 127)).astype(dtype)
    expected = tuple(np.percentile(image.astype(np.float64), [1, 99]))
    assert percentile_limits(image) == pytest.approx(expected, rel=1e-6)
    assert percentile_limits(image.T) == percentile_limits(image)
    assert percentile_limits(image[::2]) == percentile_limits(image[::2].copy())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(20, 30, 40), (110, 100, 100)])
def test_equals_monai(dtype: type[np.generic], shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Below a million voxels MONAI asks torch, whose ranks are float32; above, it asks NumPy."""
    torch = pytest.importorskip("torch")
    intensity = pytest.importorskip("monai.transforms.intensity.array")
    image = (rng.gamma(2, 30, shape).clip(0, 255)).astype(dtype)
    official = intensity.ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)
    expected = official(torch.from_numpy(image.astype(np.float32))).numpy()
    ours = scale(image, percentile_limits(image))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 if image.size < 1_000_000 else 2e-7)


def test_a_part_is_scaled_by_the_limits_of_the_whole(rng: np.random.Generator) -> None:
    image = rng.integers(-1000, 2000, (20, 20, 20)).astype(np.int16)
    limits = percentile_limits(image)
    np.testing.assert_array_equal(scale(image[3:9, 4:, :7], limits), scale(image, limits)[3:9, 4:, :7])


def test_small_bright_object_on_nothing() -> None:
    """Both percentiles are 0, and the image is not constant: the whole range is used."""
    image = np.zeros((10, 10, 10), np.uint8)
    image[5, 5, 5] = 200
    assert percentile_limits(image) == (0, 200)


def test_neither_the_image_nor_its_far_values_are_harmed() -> None:
    image = np.array([-32768, 0, 32767], np.int16)
    np.testing.assert_allclose(scale(image, (-32768, 32767)), [0, 0.5, 1], atol=1e-4)
    np.testing.assert_array_equal(image, [-32768, 0, 32767])
    np.testing.assert_allclose(scale(np.array([1e9, 1e9 + 1]), (1e9, 1e9 + 4)), [0, 0.25])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((2, 2, 2), 7, np.uint8), "constant .every voxel is 7"),
        (np.full((2, 2, 2), 7.5, np.float32), "constant"),
        (np.array([0.0, math.nan, 1]), "NaN"),
        (np.array([0.0, math.inf]), "infinite"),
        (np.array([0.0, 1e300]), "between -1e.36 and 1e.36, got 0 to 1e.300; replace .* or divide"),
        (np.array([-3e38, 0], np.float32), "got -3e.38 to 0"),
        (np.zeros((0, 3, 3), np.uint8), "no voxels"),
        (np.array([1j, 2]), "real numbers"),
    ],
)
def test_bad_images_are_refused(image: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        percentile_limits(image)


def test_bad_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="percentiles go up"):
        percentile_limits(np.arange(9), 99, 1)
    for limits in ((1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="two finite intensities"):
            scale(np.arange(9), limits)


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_large_values_keep_their_differences(dtype: type[Any]) -> None:
    """Around 10⁹ the numbers that float32 knows are 64 apart; 0 to 255 above it are all told apart."""
    image = np.arange(256, dtype=dtype) + dtype(1e9)
    np.testing.assert_array_equal(to_grey(image, (1e9, 1e9 + 255)), np.arange(256))
