"""Where a next click would help most: in the thick of what the network is unsure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from GSMedSegLib.cropped import Voxel
from GSMedSegLib.prompts import Click
from GSMedSegLib.segment import Segment

COARSE_SIDE = 64
"""Samples per side, at most, that are looked at."""

REACH = 0.15
"""Radius within which doubts add up, as a share of the object's diameter; clicks have settled as much."""

LEAST_DOUBT = 0.05
"""Mean probability of being wrong, below which no click is worth its while."""


@dataclass(frozen=True)
class Hint:
    """A proposal for the next click.

    Attributes:
        kji: the voxel to look at.
        positive: what a click there would be if the mask is wrong: foreground where it is outside.
        doubt: 0..0.5, mean probability around it that the mask is wrong.
    """

    kji: Voxel
    positive: bool
    doubt: float


def next_click(
    segment: Segment, clicks: Sequence[Click], spacing_kji_mm: tuple[float, float, float]
) -> Hint | None:
    """The place whose surroundings the network is least sure of, away from the clicks so far.

    Args:
        segment: what is known of the object.
        clicks: on it.
        spacing_kji_mm: of the image.

    Returns:
        None when nothing is in doubt.
    """
    logits = torch.nan_to_num(segment.logits, nan=-100.0)
    if logits.numel() == 0:
        return None
    factor = max(1, -(-max(logits.shape) // COARSE_SIDE))
    factors = [min(factor, n) for n in logits.shape]
    wrong = torch.sigmoid(-logits.abs())[None, None]
    doubt = F.avg_pool3d(wrong, factors, ceil_mode=True, count_include_pad=False)[0, 0].numpy()
    step_mm = np.array(spacing_kji_mm) * factors
    volume_mm3 = float((logits > 0).sum()) * float(np.prod(spacing_kji_mm))
    radius_mm = max(REACH * np.cbrt(volume_mm3 * 6 / np.pi), float(min(spacing_kji_mm)))
    smooth = ndimage.gaussian_filter(doubt, radius_mm / step_mm, mode="constant", truncate=3.0)
    start = np.array([s.start for s in segment.box])
    grid = np.ogrid[tuple(slice(n) for n in smooth.shape)]
    for click in clicks:
        at = (np.array(click.kji) - start) / factors
        distance = sum(((g - a) * s) ** 2 for g, a, s in zip(grid, at, step_mm))
        smooth = smooth * (1 - np.exp(-distance / (2 * radius_mm**2)))
    coarse = np.array(np.unravel_index(int(smooth.argmax()), smooth.shape))
    found = float(smooth[tuple(coarse)])
    if found < LEAST_DOUBT:
        return None
    # Of the voxels behind the coarse sample, the one in most doubt.
    block = tuple(slice(int(c) * f, (int(c) + 1) * f) for c, f in zip(coarse, factors, strict=True))
    part = wrong[0, 0][block]
    inside = np.unravel_index(int(part.argmax()), tuple(part.shape))
    local = tuple(b.start + int(x) for b, x in zip(block, inside))
    k, j, i = (int(x) + s.start for x, s in zip(local, segment.box))
    return Hint((k, j, i), not bool(logits[local] > 0), found)
