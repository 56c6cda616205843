"""Masks of coarse views, brought to the image's own resolution along the edges that it shows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from GSMedSegLib.cropped import Box3
from GSMedSegLib.roi import View, to_image_grid

RADIUS = 1
"""Samples around one that a line is fitted to."""

FLATNESS = 0.01
"""Variance, as a share of the view's, below which there is no edge to follow."""

LIMIT = 4.0
"""Logits beyond are as sure as this: what counts is where they change their sign."""


def guided_to_image_grid(logits: Tensor, samples: Tensor, image: Tensor, view: View, box: Box3) -> Tensor:
    """Bring a view's logits to the image's voxels inside a box, their border where the image has an edge.

    Around every sample the logits are a line of the grey values; the line's coefficients are brought to the
    voxels and applied to the voxels' own grey values. Where the image is flat this is an average.

    Args:
        logits: (S, S, S) of the view.
        samples: (S, S, S) grey values of the view.
        image: grey values of the box's voxels.
        view: that the logits are of.
        box: of voxels.

    Returns:
        the box's shape, float32.

    Source: He and Sun, Fast Guided Filter, arXiv:1505.00996.
    """
    middle, spread = samples.mean(), samples.std() + 1e-6
    guide, values = (samples - middle) / spread, logits.clamp(-LIMIT, LIMIT)
    mean_guide, mean_values = _mean(guide), _mean(values)
    covariance = _mean(guide * values) - mean_guide * mean_values
    variance = _mean(guide * guide) - mean_guide * mean_guide
    slope = covariance / (variance + FLATNESS)
    offset = mean_values - slope * mean_guide
    slope, offset = (to_image_grid(_mean(part), view, box) for part in (slope, offset))
    return slope * ((image - middle) / spread) + offset


def _mean(volume: Tensor) -> Tensor:
    """Over the cube around each sample; at the border the outermost samples count again."""
    padded = F.pad(volume[None, None], (RADIUS,) * 6, mode="replicate")
    return F.avg_pool3d(padded, 2 * RADIUS + 1, stride=1)[0, 0]
