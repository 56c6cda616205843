"""Where training clicks go: the seed's two samplers, and the centre of the current error."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

MOST_CLICKS = 5
"""The most positive, and the most negative, clicks that the samplers draw. Source: PROTOCOL of
GS_MedSegFM, M = 5."""

Clicks = list[tuple[tuple[int, int, int], int]]
"""(k, j, i) and 1 for foreground, 0 for background."""


def _draw(rng: np.random.Generator, mask: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """`count` voxels of a mask, each equally likely, without repeats where there are enough."""
    at = np.flatnonzero(mask)
    if at.size == 0 or count == 0:
        return []
    chosen = rng.choice(at, size=count, replace=at.size < count)
    return [tuple(int(x) for x in np.unravel_index(c, mask.shape)) for c in chosen]  # type: ignore[misc]


def _count(rng: np.random.Generator) -> int:
    """|N(0, M // 2)|, truncated."""
    return int(abs(rng.normal(0, MOST_CLICKS // 2)))


def uniform(rng: np.random.Generator, mask: np.ndarray) -> Clicks:
    """Positives anywhere inside, negatives anywhere outside; counts as in `edge_centre`.

    Args:
        rng: the source of chance.
        mask: (K, J, I) bool, not empty.
    """
    positives = _draw(rng, mask, min(MOST_CLICKS, _count(rng) + 1))
    negatives = _draw(rng, ~mask, min(MOST_CLICKS, _count(rng)))
    return [(p, 1) for p in positives] + [(n, 0) for n in negatives]


def edge_centre(rng: np.random.Generator, mask: np.ndarray) -> Clicks:
    """The Gaussian edge-centre sampler: the first positive deep inside, the others near the edge.

    With d the distance to the outside and d_max its maximum, the centre zone is d > 0.5 d_max and the edge
    zone 0.1 d_max < d <= 0.5 d_max; where a zone has too few voxels any voxel of the mask will do.

    Args:
        rng: the source of chance.
        mask: (K, J, I) bool, not empty.

    Source: GS_MedSegFM's `point_sampler`.
    """
    positives = min(MOST_CLICKS, _count(rng) + 1)
    negatives = min(MOST_CLICKS, _count(rng))
    depth = ndimage.distance_transform_edt(mask)
    deepest = depth.max()
    centre = depth > 0.5 * deepest
    edge = (depth > 0.1 * deepest) & ~centre
    first = _draw(rng, centre if centre.any() else mask, 1)
    others = _draw(rng, edge if edge.sum() >= positives - 1 else mask, positives - 1)
    return [(p, 1) for p in first + others] + [(n, 0) for n in _draw(rng, ~mask, negatives)]


def on_error(rng: np.random.Generator, truth: np.ndarray, mask: np.ndarray) -> Clicks:
    """One click near the centre of the largest connected error, as the challenge's corrector places it.

    Args:
        rng: the source of chance.
        truth: (K, J, I) bool.
        mask: (K, J, I) bool, the prediction.

    Returns:
        one click, or none when nothing is wrong.
    """
    error = truth != mask
    parts, count = ndimage.label(error, np.ones((3, 3, 3)))
    if count == 0:
        return []
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    box = ndimage.find_objects(parts, max_label=largest)[largest - 1]
    depth = ndimage.distance_transform_edt(np.pad(parts[box] == largest, 1))[1:-1, 1:-1, 1:-1]
    k, j, i = _draw(rng, depth >= 0.9 * depth.max(), 1)[0]
    at = (k + box[0].start, j + box[1].start, i + box[2].start)
    return [(at, int(truth[at]))]
