"""Masks of coarse views, brought to the image's own resolution along the edges that it shows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from GSMedSegLib.cropped import Box3
from GSMedSegLib.roi import View, to_image_grid

RADIUS = 1
"""Samples around one that a line is fitted to."""

FLATNESS = 0.01
"""Variance, as a share of the view's, below which there is no edge to follow."""

NOISE = 0.5
"""Where the noise moves a voxel's logit by so much, half of what it differs from its neighbours counts."""

LIMIT = 4.0
"""Logits beyond are as sure as this: what counts is where they change their sign."""


def guided_to_image_grid(logits: Tensor, samples: Tensor, image: Tensor, view: View, box: Box3) -> Tensor:
    """Bring a view's logits to the image's voxels inside a box, their border where the image has an edge.

    Around every sample the logits are a line of the grey values; the line's coefficients are brought to the
    voxels and applied to the voxels' own grey values, or those of their neighbourhood where the edge is faint
    beside the noise. Where the image is flat this is an average. Where all logits are at their lower limit,
    far from the object, nothing has to be computed.

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
    found = torch.full(image.shape, -LIMIT)
    near = _near(logits > -LIMIT, view, box)
    if near is None:
        return found
    middle, spread = samples.mean(), samples.std() + 1e-6
    guide, values = (samples - middle) / spread, logits.clamp(-LIMIT, LIMIT)
    mean_guide, mean_values = _mean(guide), _mean(values)
    covariance = _mean(guide * values) - mean_guide * mean_values
    variance = _mean(guide * guide) - mean_guide * mean_guide
    slope = covariance / (variance + FLATNESS)
    offset = mean_values - slope * mean_guide
    slope, offset = to_image_grid(torch.stack((_mean(slope), _mean(offset))), view, near)
    k, j, i = (slice(n.start - b.start, n.stop - b.start) for n, b in zip(near, box, strict=True))
    grey = (image[k, j, i] - middle) / spread
    trusted = 1 / (1 + (slope * noise_of(grey) / NOISE) ** 2)
    found[k, j, i] = slope * torch.lerp(_mean(grey), grey, trusted) + offset
    return found


def noise_of(image: Tensor) -> float:
    """Standard deviation of an image's noise, in its grey values, from what neighbours (K, J, I) differ by.

    It is the median of the second differences along its longest side, for most voxels see no edge; those of
    white noise deviate √6 times as much, and half of a normal distribution is within 0.6745 deviations.
    """
    axis = int(np.argmax(image.shape))
    lines = image.movedim(axis, -1)[::2, ::2]
    if lines.shape[-1] < 3:
        return 0.0
    return float(lines.diff(n=2).abs().median()) / (0.6745 * 6**0.5)


def _near(samples: Tensor, view: View, box: Box3) -> Box3 | None:
    """The part of a box of voxels that some samples, (S, S, S) bool, of a view have a say in, or None."""
    at = torch.nonzero(samples).numpy()
    if len(at) == 0:
        return None
    reach = 2 * RADIUS + 1  # two means, and one sample between which is interpolated
    low = np.floor(view.to_image(at.min(0) - reach)).astype(int)
    high = np.ceil(view.to_image(at.max(0) + reach)).astype(int) + 1
    k, j, i = (
        slice(max(b.start, int(start)), min(b.stop, int(stop)))
        for b, start, stop in zip(box, low, high, strict=True)
    )
    return (k, j, i) if all(side.start < side.stop for side in (k, j, i)) else None


def _mean(volume: Tensor) -> Tensor:
    """Over the cube around each sample; at the border the outermost samples count again."""
    padded = F.pad(volume[None, None], (RADIUS,) * 6, mode="replicate")
    return F.avg_pool3d(padded, 2 * RADIUS + 1, stride=1)[0, 0]
