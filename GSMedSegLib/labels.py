"""Label maps: whole numbers, 0 for background, in the smallest type that holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LabelArray = NDArray[np.unsignedinteger[Any]]


def as_labels(array: NDArray[Any], what: str) -> LabelArray:
    """Checks a label map and returns it as the smallest sufficient unsigned type.

    Args:
        array: (K, J, I) of bool, integers, or floats that are whole numbers (some tools store labels so).
        what: how to call it in an error, for example "gts".

    Returns:
        uint8, uint16 or uint32, the same shape; the very same array where its type fits already.

    Raises:
        ValueError: not 3D, no voxels, not whole numbers from 0 to 4294967295.
    """
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"{what} must be a 3D label map (K, J, I), got shape {array.shape}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"{what} must hold whole numbers, got {array.dtype}")
    smallest, largest = array.min(), array.max()
    if not (smallest >= 0 and largest <= np.iinfo(np.uint32).max):
        raise ValueError(
            f"{what} must hold labels from 0 to {np.iinfo(np.uint32).max}, got {smallest} to {largest}"
        )
    labels: LabelArray = array.astype(np.min_scalar_type(int(largest)), copy=False)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        raise ValueError(f"{what} must hold whole numbers, got fractions; is it a probability map?")
    return labels
