"""What is known of one object: logits in a box, background elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from GSMedSegLib.labels import LabelArray, as_labels
from GSMedSegLib.roi import View

Box3 = tuple[slice, slice, slice]

OUTSIDE = -10.0
"""Logit of a voxel nobody looked at: background, without doubt."""


@dataclass(frozen=True)
class Segment:
    """Logits of one object in a box of the image.

    Attributes:
        shape: (K, J, I) of the image.
        box: where the logits are.
        logits: float32 in the box's shape, on the CPU; positive inside the object, NaN where no window
            reached.
        view: the view it was last looked at in, None where a strategy has none.
    """

    shape: tuple[int, int, int]
    box: Box3
    logits: Tensor
    view: View | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(K, J, I) the object's voxels."""
        mask = np.zeros(self.shape, bool)
        mask[self.box] = (self.logits > 0).numpy()
        return mask

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.logits.numel() * self.logits.element_size()


def empty_segment(shape: tuple[int, int, int]) -> Segment:
    """A segment with nothing in it."""
    return Segment(shape, (slice(0, 0), slice(0, 0), slice(0, 0)), torch.zeros(0, 0, 0))


def paint_in_order(segments: Iterable[Segment], shape: tuple[int, int, int]) -> LabelArray:
    """(K, J, I) labels 1, 2, … in order; where objects overlap the last one wins, as in the seed method."""
    labels = np.zeros(shape, np.uint16)
    for number, segment in enumerate(segments, start=1):
        labels[segment.box][(segment.logits > 0).numpy()] = number
    return as_labels(labels, "the label map")


def paint_by_logit(segments: Iterable[Segment], shape: tuple[int, int, int]) -> LabelArray:
    """(K, J, I) labels 1, 2, …; where objects overlap the surer one wins, the first of equals."""
    labels = np.zeros(shape, np.uint16)
    best = np.zeros(shape, np.float32)
    for number, segment in enumerate(segments, start=1):
        logits = segment.logits.numpy()
        here = best[segment.box]
        wins = logits > here
        labels[segment.box][wins] = number
        here[wins] = logits[wins]
    return as_labels(labels, "the label map")
