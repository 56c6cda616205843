"""The next click that a corrector would place, as the CVPR 2025 challenge simulates it."""

from __future__ import annotations

import math

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from GSMedSegLib.metrics import check_masks
from GSMedSegLib.prompts import Click

SEED = 42
"""Reset before every draw, so that a click depends on the error alone."""

MAX_DISTANCE_VOXELS = 60_000_000
"""Padded boxes with more voxels have their distances computed at half resolution."""

_NEIGHBOURS_26 = np.ones((3, 3, 3), bool)


def next_click(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> Click | None:
    """Clicks in the middle of the largest error.

    The error's 26-connected component with most voxels is taken (of equals, the one that comes first in array
    order), and of its voxels one of those deepest inside it: farthest from any voxel outside, in voxels
    whatever the spacing, the volume's own border counting as outside. Among equally deep voxels one is drawn,
    always the same for the same error.

    Args:
        truth: (K, J, I) bool, the object as it should be.
        mask: (K, J, I) bool, the object as it is now.

    Returns:
        A positive click on a missed voxel, a negative one on a voxel too many, None when the masks are equal.

    Raises:
        ValueError: the masks differ in shape, or are not bool and 3D.

    Source:
        the challenge's evaluation script, CVPR25_iter_eval.py (github.com/JunMa11/CVPR-MedSegFMCompetition).
    """
    check_masks(truth, mask)
    if truth.ndim != 3:
        raise ValueError(f"clicks are placed in 3D masks, got shape {truth.shape}")
    error = truth != mask
    boxes = ndimage.find_objects(error.view(np.uint8))
    if not boxes:
        return None
    component, offset = _largest_component(error[boxes[0]])
    offset += [side.start for side in boxes[0]]
    depth = _depth(component)
    deepest = np.argwhere(depth == depth.max())
    drawn = deepest[np.random.RandomState(SEED).choice(len(deepest))]
    k, j, i = (int(x) for x in offset + drawn)
    return Click((k, j, i), positive=bool(truth[k, j, i]))


def _largest_component(error: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Finds the 26-connected component with most voxels.

    SciPy numbers components by their first voxel in array order, as the challenge's cc3d does.

    Args:
        error: (K, J, I) bool, not empty.

    Returns:
        The component in its bounding box, and the box's first corner (k, j, i).
    """
    labels, _ = ndimage.label(error, _NEIGHBOURS_26)
    largest = int(np.bincount(labels.ravel())[1:].argmax()) + 1
    box = ndimage.find_objects(labels, largest)[-1]
    return labels[box] == largest, np.array([side.start for side in box])


def _depth(component: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Squared distance of each voxel to the nearest one outside, in voxels; 0 outside.

    Squares are whole numbers, exact in float32 up to a depth of 4096 voxels, and have their maxima where the
    distances have them.

    Args:
        component: (K, J, I) bool, not empty, filling its bounding box.

    Returns:
        (K, J, I) float32, positive on every voxel of the component: a block of voxels halves to its maximum.
    """
    size = np.array(component.shape)
    padding = np.maximum(size // 4, 1)
    if math.prod((size + 2 * padding).tolist()) <= MAX_DISTANCE_VOXELS:
        # Padding by more than the one voxel of `black_border` changes no distance.
        return np.asarray(edt.edtsq(component.view(np.uint8), black_border=True))

    halves = (size + 2 * padding + 1) // 2
    padded = np.zeros(2 * halves, bool)
    inside = tuple(slice(p, p + n) for p, n in zip(padding, size, strict=True))
    padded[inside] = component
    halved = padded.reshape(halves[0], 2, halves[1], 2, halves[2], 2).any(axis=(1, 3, 5))
    depth: NDArray[np.float32] = edt.edtsq(halved.view(np.uint8))
    for axis in range(3):
        depth = depth.repeat(2, axis)
    return depth[inside] * component
