"""Where training clicks go: the seed's two samplers, scribbles, and the centre of the current error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MOST_CLICKS = 5
"""The most positive, and the most negative, clicks that the seed's samplers draw.
Source: GS_MedSegFM, M = 5."""

SCRIBBLE_CLICKS = 12
"""A scribble is at most so many clicks."""

TELLING_CLICKS = 2
"""So many further clicks can say where an object ends whose border the image does not show."""

Mask = NDArray[np.bool_]

Clicks = list[tuple[tuple[int, int, int], int]]
"""(k, j, i) and 1 for foreground, 0 for background."""


@dataclass(frozen=True)
class Spread:
    """How many clicks the seed's samplers place: drawn once, used for every object of a view.

    Attributes:
        positive, negative: absolute values of a standard normal distribution.
    """

    positive: float
    negative: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Spread:
        """Both at random."""
        positive, negative = np.abs(rng.standard_normal(2))
        return cls(float(positive), float(negative))

    def counts(self, most: int) -> tuple[int, int]:
        """Positive and negative clicks: min(M, ⌊|N(0, M // 2)|⌋ + 1) and min(M, ⌊|N(0, M // 2)|⌋).

        Args:
            most: M, 1 or more.

        Source: GS_MedSegFM's `point_sampler`.
        """
        sigma = most // 2
        return min(most, int(self.positive * sigma) + 1), min(most, int(self.negative * sigma))


def chance_of_step(seed: int, step: int) -> np.random.Generator:
    """What a step of a run is planned by; the first that is drawn are its `further_clicks`."""
    return np.random.default_rng([seed, 0, step])


def further_clicks(rng: np.random.Generator, shares: Sequence[float]) -> int:
    """How many clicks on the error follow the first ones in a step: the same for all its objects.

    Args:
        rng: `chance_of_step`, unused.
        shares: how often it is 0, 1, 2…
    """
    return int(rng.choice(len(shares), p=np.array(shares) / sum(shares)))


def most_clicks(voxels: int, size: int) -> int:
    """How many clicks an object of so many voxels deserves in a view of `size`³: 1 to `MOST_CLICKS`.

    It grows with the object's diameter: one click says all about a small object.
    """
    share = min(1.0, (voxels / size**3) ** (1 / 3))
    return 1 + round((MOST_CLICKS - 1) * float(share))


def _draw(rng: np.random.Generator, mask: NDArray[Any], count: int) -> list[tuple[int, int, int]]:
    """`count` voxels of a mask, each equally likely, without repeats where there are enough."""
    at = np.flatnonzero(mask)
    if at.size == 0 or count == 0:
        return []
    chosen = rng.choice(at, size=count, replace=at.size < count)
    return [tuple(int(x) for x in np.unravel_index(c, mask.shape)) for c in chosen]  # type: ignore[misc]


def uniform(rng: np.random.Generator, mask: Mask, spread: Spread, most: int = MOST_CLICKS) -> Clicks:
    """Positives anywhere inside, negatives anywhere outside.

    Args:
        rng: the source of chance.
        mask: (K, J, I) bool, not empty.
        spread: says how many.
        most: of either kind.
    """
    positives, negatives = spread.counts(most)
    return [(p, 1) for p in _draw(rng, mask, positives)] + [(n, 0) for n in _draw(rng, ~mask, negatives)]


def edge_centre(rng: np.random.Generator, mask: Mask, spread: Spread, most: int = MOST_CLICKS) -> Clicks:
    """The Gaussian edge-centre sampler: the first positive deep inside, the others near the edge.

    With d the distance to the outside and d_max its maximum, the centre zone is d > 0.5 d_max and the edge
    zone 0.1 d_max < d <= 0.5 d_max; where a zone has too few voxels any voxel of the mask will do.

    Args:
        rng: the source of chance.
        mask: (K, J, I) bool, not empty.
        spread: says how many.
        most: of either kind.

    Source: GS_MedSegFM's `point_sampler`.
    """
    positives, negatives = spread.counts(most)
    depth = ndimage.distance_transform_edt(mask)
    deepest = depth.max()
    centre = depth > 0.5 * deepest
    edge = (depth > 0.1 * deepest) & ~centre
    first = _draw(rng, centre if centre.any() else mask, 1)
    others = _draw(rng, edge if edge.sum() >= positives - 1 else mask, positives - 1)
    return [(p, 1) for p in first + others] + [(n, 0) for n in _draw(rng, ~mask, negatives)]


def centre(rng: np.random.Generator, mask: Mask, spread: Spread, most: int = MOST_CLICKS) -> Clicks:
    """One click where the challenge's corrector places its first; `spread` and `most` mean nothing to it."""
    del spread, most
    return on_error(rng, mask, np.zeros_like(mask))


def scribble(rng: np.random.Generator, mask: Mask, spread: Spread, most: int = MOST_CLICKS) -> Clicks:
    """A straight stroke through the object in one slice of a random direction, as far as it is inside.

    Args:
        rng: the source of chance.
        mask: (K, J, I) bool, not empty.
        spread: means nothing to it.
        most: neither does this.
    """
    del spread, most
    axis = int(rng.integers(3))
    first = _draw(rng, mask, 1)[0]
    index: list[Any] = [slice(None)] * 3
    index[axis] = slice(first[axis], first[axis] + 1)
    there = np.zeros_like(mask)
    there[tuple(index)] = mask[tuple(index)]
    last = _draw(rng, there, 1)[0]
    line = np.round(np.linspace(first, last, SCRIBBLE_CLICKS)).astype(int)
    voxels = dict.fromkeys((int(k), int(j), int(i)) for k, j, i in line)
    return [(voxel, 1) for voxel in voxels if mask[voxel]]


FIRST_CLICKS: dict[str, Callable[[np.random.Generator, Mask, Spread, int], Clicks]] = {
    "centre": centre,
    "edge_centre": edge_centre,
    "uniform": uniform,
    "scribble": scribble,
}
"""Ways to start with clicks, by name."""


def bounding_box(rng: np.random.Generator, mask: Mask) -> tuple[slice, slice, slice]:
    """The box around an object, each face up to a tenth of its side too far out, as people draw them."""
    sides = []
    for axis, found in enumerate(ndimage.find_objects(mask.astype(np.uint8))[0]):
        slack = rng.uniform(0, 0.1, 2) * (found.stop - found.start)
        low, high = (round(s) for s in slack)
        sides.append(slice(max(0, found.start - low), min(mask.shape[axis], found.stop + high)))
    return sides[0], sides[1], sides[2]


def on_error(rng: np.random.Generator, truth: Mask, mask: Mask) -> Clicks:
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
