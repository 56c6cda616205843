"""Regions of an image that nobody labelled: objects to click on, with the texture of real scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from GSMedSegLib.case_source import CaseSource
from GSMedSegLib.intensity import percentile_limits, scale
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.roi import even_contrast
from Training.volumes import LabelledVolume

MIN_REGION_VOXELS = 100
MOST_OF_IMAGE = 0.15
"""A region of fewer voxels is noise, one of a larger share of the image is its background."""

CLEAR_BORDER, BORDER_TO_INSIDE = 1.2, 1.5
"""How steep a region's border must be: so many times the basin's depth, and so many times its inside."""


FEWEST_VOXELS = 4
"""An image with fewer along an axis has no slopes: ITK's filters refuse it."""


@dataclass(frozen=True)
class Grain:
    """How coarsely an image is divided.

    Attributes:
        sigma: of the smoothing, in smallest voxel sides.
        depth: basins shallower than this share of the image's steep slopes are merged.
    """

    sigma: float
    depth: float


GRAINS = (Grain(1.5, 0.1), Grain(2.2, 0.18))
"""Each case is divided in these ways: muscles, bones and vessels; organs and limbs."""


def find_regions(
    image: NDArray[np.float32], spacing_mm: tuple[float, float, float], grain: Grain
) -> LabelArray:
    """Divide an image along its steepest slopes, and keep the regions with a clear border.

    Args:
        image: (K, J, I), contrasts that should count alike scaled alike.
        spacing_mm: (k, j, i).
        grain: how coarsely.

    Returns:
        (K, J, I) labels 1, 2, …; 0 where there is no clear region, as in a stack of three slices.

    Source: watershed by flooding of the gradient magnitude, as in ITK's `MorphologicalWatershedImageFilter`.
    """
    if min(image.shape) < FEWEST_VOXELS:
        return np.zeros(image.shape, np.uint16)
    smooth = sitk.GetImageFromArray(np.asarray(image, np.float32))
    smooth.SetSpacing(tuple(float(s) for s in spacing_mm[::-1]))
    slopes = sitk.GradientMagnitudeRecursiveGaussian(smooth, grain.sigma * float(min(spacing_mm)))
    steep: NDArray[np.float32] = sitk.GetArrayFromImage(slopes)
    depth = grain.depth * float(np.quantile(steep[steep > np.quantile(steep, 0.3)], 0.9))
    basins: NDArray[np.int64] = sitk.GetArrayFromImage(
        sitk.MorphologicalWatershed(slopes, depth, markWatershedLine=False, fullyConnected=False)
    ).astype(np.int64)
    border = _borders(basins)
    count = int(basins.max()) + 1
    voxels = np.bincount(basins.ravel(), minlength=count)
    at_border = _means(basins[border], steep[border], count)
    inside = _means(basins[~border], steep[~border], count)
    kept = (voxels >= MIN_REGION_VOXELS) & (voxels <= MOST_OF_IMAGE * basins.size)
    kept &= (at_border >= CLEAR_BORDER * depth) & (at_border > BORDER_TO_INSIDE * inside)
    labels: LabelArray = np.where(kept, np.cumsum(kept), 0)[basins].astype(np.uint16)
    return labels


def load_regions(source: CaseSource, grain: Grain, clip: bool) -> LabelledVolume:
    """A case with regions of its image in place of its labels; see `LabelledVolume` for `clip`."""
    case = source.load().case
    limits = percentile_limits(case.image)
    shown = torch.from_numpy(scale(case.image, limits))
    body = shown[shown > 0.02]  # not the air around, whose share differs from crop to crop
    labels = find_regions(even_contrast(shown, body).numpy(), case.spacing_kji_mm, grain)
    return LabelledVolume(labels, case.spacing_kji_mm, case.image, clip)


def _borders(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(K, J, I) voxels with a face towards another label."""
    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        along, found = np.moveaxis(labels, axis, 0), np.moveaxis(border, axis, 0)
        differs = along[1:] != along[:-1]
        found[1:] |= differs
        found[:-1] |= differs
    return border


def _means(labels: NDArray[np.int64], values: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """(count,) mean of the values of each label, 0 for a label that is not there."""
    sums = np.bincount(labels, weights=values, minlength=count)
    return sums / np.maximum(np.bincount(labels, minlength=count), 1)
