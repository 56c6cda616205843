"""Intensities as the network wants them: the 1st to 99th percentile of the whole volume to 0..1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GREY_PERCENTILES = (0.5, 99.5)
"""Of the voxels, to 0 and 255, where no window is given."""

LARGEST = 1e36
"""No voxel is farther from 0: the network's 32-bit numbers end at 3e38, and sums of voxels need room."""

_CHUNK_VOXELS = 1 << 20
"""Voxels counted at a time: the 64-bit indices that counting needs then stay in cache."""


def percentile_limits(image: NDArray[Any], lower: float = 1, upper: float = 99) -> tuple[float, float]:
    """The two intensities that are to become 0 and 1.

    Equal to `np.percentile(image, [lower, upper])` (linear interpolation), but for images of 8 or 16 bits the
    values are counted rather than sorted. Where both percentiles fall on one value although the image is not
    constant (a small bright object on nothing), they are the smallest and the largest intensity instead.

    Args:
        image: any shape, real numbers.
        lower: percentile, 0..100.
        upper: percentile, above `lower`.

    Returns:
        (low, high) with low < high, in the unit of the image.

    Raises:
        ValueError: no voxels, NaN or infinite voxels, voxels beyond `LARGEST`, a constant image, or
            percentiles out of order.

    Source: MONAI `ScaleIntensityRangePercentiles`, which takes the same percentiles.
    """
    if not 0 <= lower < upper <= 100:
        raise ValueError(f"percentiles go up from 0 to 100, got {lower} and {upper}")
    if image.size == 0:
        raise ValueError(f"the image has no voxels (shape {image.shape})")
    if image.dtype.kind not in "buif":
        raise ValueError(f"the image must hold real numbers, got {image.dtype}")
    smallest, largest = float(image.min()), float(image.max())
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ValueError(
            "the image has NaN or infinite voxels; replace them, for example by its smallest value"
        )
    if max(-smallest, largest) > LARGEST:
        raise ValueError(
            f"voxels must lie between -{LARGEST:g} and {LARGEST:g}, got {smallest:.3g} to {largest:.3g}; "
            "replace those that mean nothing, or divide the image"
        )
    if smallest == largest:
        raise ValueError(f"the image is constant (every voxel is {smallest:g}): there is nothing to segment")
    if image.dtype.kind in "bui" and image.dtype.itemsize <= 2:
        low, high = _percentiles_by_counting(image, int(smallest), (lower, upper))
    else:
        # As float64: a float32 image would otherwise have the ranks themselves computed in float32.
        low, high = np.percentile(image, np.array([lower, upper], dtype=np.float64)).tolist()
    return (low, high) if low < high else (smallest, largest)


def scale(image: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Takes the limits to 0 and 1, and clips what is beyond.

    Args:
        image: any shape, also a part of the volume the limits are from.
        limits: (low, high) from `percentile_limits`.

    Returns:
        float32 of the same shape, 0..1.

    Raises:
        ValueError: limits that are not finite or not in order.
    """
    low, high = limits
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"the limits must be two finite intensities, the lower one first, got {limits}")
    dtype = np.result_type(image.dtype, np.float32)
    low_high = np.array([low, high], dtype=dtype)
    scaled: NDArray[Any] = np.subtract(image, low_high[0], dtype=dtype)
    scaled /= low_high[1] - low_high[0]
    np.clip(scaled, 0, 1, out=scaled)
    return scaled.astype(np.float32, copy=False)


def to_grey(image: NDArray[Any], window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Grey values of 8 bits, as the challenge's cases have them.

    Args:
        image: any shape, real numbers.
        window: what becomes 0 and 255; None for `GREY_PERCENTILES`.

    Raises:
        ValueError: a constant image.
    """
    low, high = window or tuple(np.percentile(image, GREY_PERCENTILES))
    if not low < high:
        low, high = image.min(), image.max()  # all but a few voxels are the same
    if not low < high:
        raise ValueError("the image is constant, there is nothing to see in it")
    dtype = np.result_type(image.dtype, np.float32)  # float32 does not tell neighbouring large values apart
    scaled: NDArray[Any] = (image.astype(dtype) - dtype.type(low)) * dtype.type(255 / (high - low))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def _percentiles_by_counting(
    image: NDArray[Any], smallest: int, percentiles: tuple[float, float]
) -> list[float]:
    voxels = image.ravel(order="K")
    counts = np.zeros(1 << (8 * image.dtype.itemsize), dtype=np.int64)
    for start in range(0, voxels.size, _CHUNK_VOXELS):
        chunk = voxels[start : start + _CHUNK_VOXELS].astype(np.intp)
        counts += np.bincount(chunk - smallest, minlength=counts.size)
    up_to = np.cumsum(counts)
    result = []
    for percentile in percentiles:
        rank = percentile / 100 * (voxels.size - 1)
        fraction = rank - int(rank)
        # The k-th smallest voxel (from 0) has the first value up to which more than k voxels are counted.
        ranks = [int(rank), min(int(rank) + 1, voxels.size - 1)]
        below, above = (np.searchsorted(up_to, ranks, side="right") + smallest).tolist()
        # From the nearer end, as NumPy does it, so that the rounding is the same too.
        step = above - below
        result.append(float(below + step * fraction if fraction < 0.5 else above - step * (1 - fraction)))
    return result
