"""What the user said, as pictures: clicks, the previous mask and boxes as maps over a ROI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR_SIGMA = 1.5
WIDE_SIGMA = 6.0
INTENSITY_SIGMAS = (0.15, 0.05)
"""Widths of the prompt maps: half-resolution voxels for the distances, scaled intensity for the likeness."""

PROMPT_MAPS = 12


@dataclass(frozen=True)
class Prompts:
    """Clicks of R objects inside one batch of ROIs.

    Attributes:
        coords: (R, N, 3) voxel positions (k, j, i) in the ROI.
        labels: (R, N) 0 background, 1 foreground, 2 / 3 the same for special classes, -1 padding.
        prev_logits: (R, 1, D, H, W) what was predicted before, or None.
        owner: (R,) the ROI of the batch that each object lies in; None means all in the first.
    """

    coords: Tensor
    labels: Tensor
    prev_logits: Tensor | None = None
    owner: Tensor | None = None


def features_at(volume: Tensor, prompts: Prompts) -> Tensor:
    """The half-resolution value under every click.

    Args:
        volume: (B, C, d, h, w).
        prompts: clicks at full resolution; padding is read at the nearest voxel and means nothing.

    Returns:
        (R, N, C).
    """
    sizes = torch.tensor(volume.shape[-3:], device=volume.device)
    at = torch.minimum(torch.div(prompts.coords.long(), 2, rounding_mode="floor").clamp(min=0), sizes - 1)
    rows = prompts.coords.shape[0]
    owner = prompts.owner if prompts.owner is not None else at.new_zeros(rows)
    k, j, i = at.unbind(-1)
    return volume[owner.unsqueeze(1), :, k, j, i]


def prompt_maps(low: Tensor, image_low: Tensor, prompts: Prompts) -> Tensor:
    """Dense pictures of the prompts at half resolution.

    The maps, for foreground clicks and then for background ones: a near and a wide Gaussian around the
    clicks; the likeness of every voxel to the voxels clicked, by intensity broadly and closely, and by the
    cosine of their features. Then the previous mask (-1..1, 0 without one) and the image.

    Args:
        low: (B, C, d, h, w) embedding.
        image_low: (B, 1, d, h, w) image.
        prompts: R objects.

    Returns:
        (R, PROMPT_MAPS, d, h, w) in the dtype of `low`.
    """
    rows = prompts.coords.shape[0]
    size = low.shape[-3:]
    owner = (
        prompts.owner if prompts.owner is not None else torch.zeros(rows, dtype=torch.long, device=low.device)
    )
    with torch.autocast(low.device.type, enabled=False):
        image = image_low.float()
        unit = F.normalize(low.float(), dim=1, eps=1e-3)
        kinds = [
            (prompts.labels >= 0) & (prompts.labels % 2 == 1),
            (prompts.labels >= 0) & (prompts.labels % 2 == 0),
        ]
        near = _gaussians(prompts.coords, size, NEAR_SIGMA)
        wide = _gaussians(prompts.coords, size, WIDE_SIGMA)
        difference = image[owner] - features_at(image, prompts)[..., None, None]
        alike, twin = (torch.exp(-0.5 * (difference / sigma) ** 2) for sigma in INTENSITY_SIGMAS)
        clicked = features_at(unit, prompts)
        cosine = torch.einsum("rnc,rcs->rns", clicked, unit.flatten(2)[owner]).unflatten(2, size)
        maps = []
        for kind in kinds:
            keep = kind[..., None, None, None]
            for volume in (near, wide, alike, twin, cosine):
                maps.append((volume * keep).amax(dim=1))
        previous = torch.zeros_like(maps[0])
        if prompts.prev_logits is not None:
            previous = F.avg_pool3d(torch.sigmoid(prompts.prev_logits.float()), 2)[:, 0] * 2 - 1
        return torch.stack([*maps, previous, image[owner][:, 0]], dim=1).to(low.dtype)


BOX_INSIDE, BOX_OUTSIDE = 0.4, -8.0
"""Logits of a box: within it lies the object, though not everywhere; outside there is nothing of it."""


def box_logits(box: tuple[slice, slice, slice], shape: Sequence[int]) -> Tensor:
    """What stands for a box where there is no previous mask yet: VISTA3D has no input for boxes.

    Args:
        box: (k, j, i) slices in a ROI.
        shape: (D, H, W) of the ROI.

    Returns:
        (1, D, H, W) float32.
    """
    logits = torch.full((1, *shape), BOX_OUTSIDE)
    logits[(0, *box)] = BOX_INSIDE
    return logits


def _gaussians(coords: Tensor, size: Sequence[int], sigma: float) -> Tensor:
    """(R, N, d, h, w) Gaussians of height 1 around each click, on the half-resolution grid."""
    centres = (coords.float() + 0.5) / 2 - 0.5
    axes = [
        torch.exp(-0.5 * ((torch.arange(n, device=coords.device) - centres[..., a, None]) / sigma) ** 2)
        for a, n in enumerate(size)
    ]
    return axes[0][..., :, None, None] * axes[1][..., None, :, None] * axes[2][..., None, None, :]
