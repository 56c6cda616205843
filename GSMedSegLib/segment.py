"""What is known of one object: logits in a box, background elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from GSMedSegLib.cropped import Box3, Cropped, Voxel
from GSMedSegLib.labels import LabelArray, as_labels
from GSMedSegLib.prompts import Click
from GSMedSegLib.roi import View

OUTSIDE = -10.0
"""Logit of a voxel nobody looked at: background, without doubt."""

GIVEN = 4.0
"""Logit of a voxel that the user gave."""


@dataclass(frozen=True)
class Segment:
    """Logits of one object in a box of the image.

    Attributes:
        shape: (K, J, I) of the image.
        box: where the logits are.
        logits: float32 in the box's shape, on the CPU; positive inside the object, NaN where no window
            reached.
        view: the view it was last looked at in, None where a strategy has none.
        given: whether it began as a mask of the user's, of which a click changes only what is around it.
        claimed: voxels (k, j, i) that were clicked as the object's: no other object takes them.
    """

    shape: tuple[int, int, int]
    box: Box3
    logits: Tensor
    view: View | None = None
    given: bool = False
    claimed: tuple[Voxel, ...] = ()

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(K, J, I) the object's voxels."""
        mask = np.zeros(self.shape, bool)
        mask[self.box] = (self.logits > 0).numpy()
        return mask

    @property
    def probability(self) -> NDArray[np.float32]:
        """(K, J, I) 0..1, what the network gives for the object; 0 where nobody looked.

        It is above 0.5 where the mask is. No measurement has calibrated it: 0.8 is surer than 0.7, but need
        not be right in eight of ten voxels.
        """
        probability = np.zeros(self.shape, np.float32)
        probability[self.box] = torch.sigmoid(torch.nan_to_num(self.logits, nan=-torch.inf)).numpy()
        return probability

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.logits.numel() * self.logits.element_size()


def empty_segment(shape: tuple[int, int, int]) -> Segment:
    """A segment with nothing in it."""
    return Segment(shape, (slice(0, 0), slice(0, 0), slice(0, 0)), torch.zeros(0, 0, 0))


def given_segment(mask: Cropped) -> Segment:
    """A mask of the user's as a segment, with a margin in which it is known to end."""
    k, j, i = (
        slice(max(0, s.start - 1), min(n, s.stop + 1)) for s, n in zip(mask.box, mask.shape, strict=True)
    )
    if mask.array.size == 0:
        return replace(empty_segment(mask.shape), given=True)
    logits = torch.full((k.stop - k.start, j.stop - j.start, i.stop - i.start), -GIVEN)
    at = tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(mask.box, (k, j, i)))
    logits[at][torch.from_numpy(np.ascontiguousarray(mask.array))] = GIVEN
    return Segment(mask.shape, (k, j, i), logits, given=True)


def smoothed(
    segment: Segment, radius_mm: float, spacing_kji_mm: tuple[float, float, float], clicks: Sequence[Click]
) -> Segment:
    """A segment whose border is smoother; what was clicked stays what the clicks say.

    Args:
        segment: what is known of the object.
        radius_mm: standard deviation of the Gaussian that the logits are smoothed with; 0 changes nothing.
            Along each axis at most a quarter of the box counts: more takes long, and means nothing.
        spacing_kji_mm: of the image.
        clicks: on the object.
    """
    if radius_mm <= 0 or segment.logits.numel() == 0:
        return segment
    # Logits far from the border would shift it: they count as far as they can be doubted.
    bounded = torch.nan_to_num(segment.logits, nan=-GIVEN).clamp(-GIVEN, GIVEN).numpy()
    sigma = np.minimum(radius_mm / np.asarray(spacing_kji_mm), np.array(segment.logits.shape) / 4)
    logits = torch.from_numpy(ndimage.gaussian_filter(bounded, sigma, mode="nearest", truncate=3.0))
    for click in clicks:
        at = tuple(x - s.start for x, s in zip(click.kji, segment.box))
        if all(0 <= x < n for x, n in zip(at, logits.shape)):
            logits[at] = segment.logits[at]
    return replace(segment, logits=logits)


def paint_in_order(segments: Iterable[Segment], shape: tuple[int, int, int]) -> LabelArray:
    """(K, J, I) labels 1, 2, … in order; where objects overlap the last one wins, as in the seed method."""
    labels = np.zeros(shape, np.uint16)
    for number, segment in enumerate(segments, start=1):
        labels[segment.box][(segment.logits > 0).numpy()] = number
    return as_labels(labels, "the label map")


def paint_by_logit(segments: Iterable[Segment], shape: tuple[int, int, int]) -> LabelArray:
    """(K, J, I) labels 1, 2, …; where objects overlap the surer one wins, the first of equals.

    A voxel that was clicked as an object's is that object's, however sure others are of it.
    """
    labels = np.zeros(shape, np.uint16)
    best = np.zeros(shape, np.float32)
    for number, segment in enumerate(segments, start=1):
        logits = segment.logits.numpy()
        here = best[segment.box]
        wins = logits > here
        labels[segment.box][wins] = number
        here[wins] = logits[wins]
        for kji in segment.claimed:
            if best[kji] < np.inf:
                labels[kji], best[kji] = number, np.inf
    return as_labels(labels, "the label map")
